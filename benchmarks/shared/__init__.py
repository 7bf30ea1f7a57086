"""Code that several benchmarks use: SAEs, the check of contenders, timing, and facts about the machine."""
