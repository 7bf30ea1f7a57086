"""What every benchmark uses: the machine, the SAEs, agreement of results, statistics."""
