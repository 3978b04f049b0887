"""Records and the paper's numbers -> the content of tables and figures."""
