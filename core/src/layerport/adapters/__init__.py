"""The edge: each module speaks to one foreign library, and is imported only once that library is in use."""
