"""What runs in the engines' own processes: the servicer base, and one module or folder per engine."""
