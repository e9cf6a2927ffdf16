"""The first study of forgetting: its rows and what is made of them."""
