"""Results for people: `report.html`, the paper's figures, and text for the terminal."""
