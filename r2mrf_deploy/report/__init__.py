"""What is shown to people: tables, plots and the files of an evaluation."""
