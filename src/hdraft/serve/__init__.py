"""`hdraft serve`: one model behind OpenAI's API, and a page that shows where every token comes from."""
