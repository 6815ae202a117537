"""The pages are held to the code: links, commands and configuration keys that they show."""
