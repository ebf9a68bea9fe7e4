"""The scripts that count in Redis: each is one atomic decision. Redis >= 6.2, or Valkey.

They keep the theory of `routing.limits.window`: slots of a second, each counted for 61. Time is the server's (`TIME`),
so replicas' clocks don't matter. A level has two keys, both of which expire when there is nothing left to count:

    {PREFIX}:limits:LEVEL:counts   hash: `r<slot>` and `t<slot>` (requests and tokens of a second), `requests` and
                                   `tokens` (their sums), `oldest` and `newest` (slots in use)
    {PREFIX}:limits:LEVEL:holds    sorted set: the requests that run, by the microsecond in which their lease ends

and all share `{PREFIX}:limits:epoch`: what it says was made up when it was found missing, and the microsecond from
which on it holds. A replica whose epoch is another one knows that Redis has forgotten what it counted. And there are
`{PREFIX}:limits:replicas`: a sorted set of them, each by the microsecond until which it is taken to be there; as that
is equally long for all, it tells when each has greeted last. And, while replicas that had lost Redis together wait for
one another, `{PREFIX}:limits:reunion`: the microsecond from which on all of them follow Redis again.

The braces make one slot of Redis Cluster of all of them: the root's limits bind all requests, and a decision is about
all its levels, or none. So one node does the counting, whatever the cluster's size.

Each script is given a time, the server's, after which nobody waits for its answer: then it does nothing. So what a
Redis that stood still finds in its buffers is not counted behind the back of who gave up on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha1
from typing import Final

from llmg.core.levels import Level
from llmg.core.limits import SPAN, WHATS

LATE: Final = 0
"""Done nothing: it came too late. Reply: LATE, now (microseconds)."""
UNKNOWN: Final = 1
"""Done nothing: the epoch is another one. Reply: UNKNOWN, now."""
FULL: Final = 2
"""There is no room. Reply: FULL, now, place of the level (from 0), place of the limit in WHATS, microseconds to wait,
and for each level requests, tokens, microseconds to wait for all."""
DONE: Final = 3
"""Reply: DONE, now; of RESERVE: the slot, and for each level as above."""

SERVER_TIME: Final = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
"""

_HOUR: Final = 3600  # seconds
_KEPT: Final = f"local KEPT = {SPAN + 1}\n"

_COMMON: Final = """
local slot = math.floor(now / 1000000)

local function window(key)
  local found = redis.call('HMGET', key, 'oldest', 'newest', 'requests', 'tokens', 'r' .. slot, 't' .. slot)
  local it = {key = key, slot = slot, oldest = tonumber(found[1]), newest = tonumber(found[2]),
              requests = tonumber(found[3]), tokens = tonumber(found[4]),
              r = tonumber(found[5]) or 0, t = tonumber(found[6]) or 0}
  if not it.newest or it.newest <= slot - KEPT or it.newest >= slot + KEPT then
    if it.newest then redis.call('DEL', key) end
    return {key = key, slot = slot, oldest = slot, newest = 0, requests = 0, tokens = 0, r = 0, t = 0}
  end
  if it.newest > slot then it.slot = it.newest end  -- the clock was set back a little
  local over = {}
  for old = it.oldest, it.slot - KEPT do
    over[#over + 1] = 'r' .. old
    over[#over + 1] = 't' .. old
  end
  if #over > 0 then
    local values = redis.call('HMGET', key, unpack(over))
    for place = 1, #over, 2 do
      it.requests = it.requests - (tonumber(values[place]) or 0)
      it.tokens = it.tokens - (tonumber(values[place + 1]) or 0)
    end
    redis.call('HDEL', key, unpack(over))
    it.oldest = it.slot - KEPT + 1
    redis.call('HSET', key, 'oldest', it.oldest, 'requests', it.requests, 'tokens', it.tokens)
  end
  return it
end

local function add(it, at, requests, tokens)
  if at > it.slot then at = it.slot end
  if at <= it.slot - KEPT then return end
  it.requests = it.requests + requests
  it.tokens = it.tokens + tokens
  local r, t = it.r, it.t
  if at ~= slot then
    local found = redis.call('HMGET', it.key, 'r' .. at, 't' .. at)
    r, t = tonumber(found[1]) or 0, tonumber(found[2]) or 0
  end
  local newer = at > it.newest
  if at < it.oldest then it.oldest = at end
  if newer then it.newest = at end
  redis.call('HSET', it.key, 'oldest', it.oldest, 'newest', it.newest, 'requests', it.requests, 'tokens', it.tokens,
             'r' .. at, r + requests, 't' .. at, t + tokens)
  if newer then redis.call('EXPIRE', it.key, KEPT + 1) end
end

local function all_back(it)
  if it.requests == 0 and it.tokens == 0 then return 0 end
  return math.max(0, (it.newest + KEPT) * 1000000 - now)
end
"""

_GUARD: Final = f"""
if now > tonumber(ARGV[2]) then return {{{LATE}, now}} end
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return {{{UNKNOWN}, now}} end
"""

_RESERVE: Final = f"""
local id, tokens, lease = ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])

local function wait(it, kind, over)
  local names = {{}}
  for at = it.oldest, it.newest do names[#names + 1] = kind .. at end
  for place, value in ipairs(redis.call('HMGET', it.key, unpack(names))) do
    over = over - (tonumber(value) or 0)
    if over <= 0 then return (it.oldest + place - 1 + KEPT) * 1000000 - now end
  end
  return KEPT * 1000000
end

local windows, longest, level, what = {{}}, -1, 0, 0
local function full(place, which, microseconds)
  if microseconds > longest then longest, level, what = microseconds, place - 1, which end
end
for place = 1, (#KEYS - 1) / 2 do
  local it, holds = window(KEYS[2 * place]), KEYS[2 * place + 1]
  local most = {{}}  -- -1: any number
  for which = 0, 2 do most[which] = tonumber(ARGV[3 * place + 3 + which]) end
  windows[place] = it
  if most[0] >= 0 and it.requests + 1 > most[0] then full(place, 0, wait(it, 'r', it.requests + 1 - most[0])) end
  if most[1] >= 0 and it.tokens + tokens > most[1] then full(place, 1, wait(it, 't', it.tokens + tokens - most[1])) end
  if most[2] >= 0 then
    it.holds, it.held = holds, redis.call('ZCARD', holds)
    if it.held >= most[2] then it.held = it.held - redis.call('ZREMRANGEBYSCORE', holds, '-inf', now) end
    if it.held >= most[2] then full(place, 2, 0) end
  end
end

local reply = {{{FULL}, now, level, what, longest}}
if longest < 0 then
  reply = {{{DONE}, now, windows[1].slot}}
  for _, it in ipairs(windows) do
    add(it, it.slot, 1, tokens)
    if it.holds then
      redis.call('ZADD', it.holds, now + lease, id)
      redis.call('PEXPIRE', it.holds, math.ceil(lease / 500))
    end
  end
end
for _, it in ipairs(windows) do
  reply[#reply + 1] = it.requests
  reply[#reply + 1] = it.tokens
  reply[#reply + 1] = all_back(it)
end
return reply
"""

_NOTE: Final = f"""
local id, requests, tokens, at = ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
for place = 1, (#KEYS - 1) / 2 do
  if requests ~= 0 or tokens ~= 0 then
    local it = window(KEYS[2 * place])
    add(it, at, requests, tokens)
  end
  if id ~= '' then redis.call('ZREM', KEYS[2 * place + 1], id) end
end
return {{{DONE}, now}}
"""

_HOLD: Final = f"""
local lease, holds = tonumber(ARGV[3]), {{}}
for place = 4, #ARGV do
  holds[#holds + 1] = now + lease
  holds[#holds + 1] = ARGV[place]
end
if #holds == 0 then return {{{DONE}, now}} end
redis.call('ZADD', KEYS[2], unpack(holds))
redis.call('PEXPIRE', KEYS[2], math.ceil(lease / 500))  -- two leases, in milliseconds
return {{{DONE}, now}}
"""

_GREET: Final = f"""
local epoch = redis.call('GET', KEYS[1])
if not epoch then
  epoch = ARGV[1] .. '@' .. string.format('%d', now + tonumber(ARGV[2]))
end
redis.call('SET', KEYS[1], epoch, 'EX', {_HOUR})
local stay = tonumber(ARGV[4])
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now - {_HOUR} * 1000000)
if ARGV[5] == '1' then
  redis.call('ZADD', KEYS[2], now + stay, ARGV[3])
else
  redis.call('ZADD', KEYS[2], 'NX', now + stay, ARGV[3])
end
redis.call('EXPIRE', KEYS[2], {_HOUR})
local there = redis.call('ZCOUNT', KEYS[2], string.format('(%d', now), '+inf')
local ready = tonumber(string.match(epoch, '@(%d+)$'))
local since, late, soonest, latest = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8]), tonumber(ARGV[9])
local reunion = tonumber(redis.call('GET', KEYS[3]) or 0)
if ARGV[5] == '1' and since < now then
  local missing = redis.call('ZCOUNT', KEYS[2], since + stay, now - late + stay) > 0
  local set = reunion
  if missing and reunion <= now then set = now + latest end
  if not missing and reunion > now + soonest then set = now + soonest end
  if set ~= reunion then redis.call('SET', KEYS[3], set, 'PX', math.ceil((set - now) / 1000)) end
  reunion = set
end
return {{{DONE}, now, epoch, math.max(ready, reunion), there}}
"""


class Script:
    """A script's text, and the SHA-1 that Redis knows it by."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.sha = sha1(text.encode(), usedforsecurity=False).hexdigest()


class Scripts:
    """All of them. `time` sets `now`, in microseconds; tests have a time of their own.

    RESERVE and NOTE have as keys the epoch's, then counts and holds of each level; HOLD the epoch's and one level's
    holds; GREET the epoch's, the replicas' and the reunion's. All but GREET have as first two arguments the epoch and
    the time after which they do nothing. Then:

    reserve: a request's id, its tokens, the lease in microseconds, and for each level its three limits.
    note: the id of a request that is over (or nothing), requests and tokens to add, and their slot.
    hold: the lease, and the ids of requests that run.
    greet: a new epoch, and in how many microseconds it holds, if there is none; the replica that greets, and for how
    many microseconds it is taken to be there; 1 if it has told all that it let in, else 0: then one that is known stays
    as it was. Where it has lost Redis: since when others have greeted last that may have lost it, too, and are missing
    if they have not greeted for how many microseconds; in how many at the soonest, when none is missing any more, and
    at the latest all go on. Reply: DONE, now, epoch, from when on to follow Redis, how many replicas there are.
    """

    def __init__(self, time: str = SERVER_TIME) -> None:
        self.reserve = Script(time + _KEPT + _COMMON + _GUARD + _RESERVE)
        self.note = Script(time + _KEPT + _COMMON + _GUARD + _NOTE)
        self.hold = Script(time + _GUARD + _HOLD)
        self.greet = Script(time + _GREET)

    def all(self) -> tuple[Script, ...]:
        """Each of them."""
        return self.reserve, self.note, self.hold, self.greet


class Names:
    """The names of the keys."""

    def __init__(self, prefix: str) -> None:
        self._begin = f"{{{prefix}}}:limits:"
        self.epoch = f"{self._begin}epoch"
        self.replicas = f"{self._begin}replicas"
        self.reunion = f"{self._begin}reunion"

    def counts(self, level: str) -> str:
        """What a level's requests took."""
        return f"{self._begin}{level}:counts"

    def holds(self, level: str) -> str:
        """Those of a level that run."""
        return f"{self._begin}{level}:holds"

    def of(self, levels: Sequence[str]) -> list[str]:
        """All keys of a decision about these levels."""
        keys = [self.epoch]
        for level in levels:
            keys += (self.counts(level), self.holds(level))
        return keys


def limits_of(levels: Sequence[Level]) -> list[int]:
    """The levels' limits as RESERVE wants them."""
    limits = []
    for level in levels:
        for what in WHATS:
            limit = getattr(level.limits, what)
            limits.append(-1 if limit is None else limit)
    return limits
