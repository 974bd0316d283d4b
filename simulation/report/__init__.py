"""What a researcher keeps of simulated runs: one page that compares them, and Parquet tables."""
