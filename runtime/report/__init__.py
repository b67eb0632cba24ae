"""report.html of a run's folder, and of several runs side by side."""
