"""What several test files share and what is no fixture: imported as ``tests.support.NAME``."""
