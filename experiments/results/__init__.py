"""Records beside the paper: from one record for each trial to what a table or figure says."""
