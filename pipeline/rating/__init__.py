"""The page on which people rate: what they are asked, what they answered, and what it is worth."""
