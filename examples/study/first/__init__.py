"""The first study of forgetting: its rows, and tables made from them."""
