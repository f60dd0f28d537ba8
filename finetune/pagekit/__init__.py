"""The page kit: tables, panels and templates that evaluation reports and search reports share."""
