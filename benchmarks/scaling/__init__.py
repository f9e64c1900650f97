"""How large a network a budget is best spent on: the study behind the defaults."""
