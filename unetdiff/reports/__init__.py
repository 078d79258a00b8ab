"""Pages, records and charts: any runs side by side on one page."""
