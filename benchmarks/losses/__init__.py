"""What half precision and int8 weights lose, and how far the results of correct programs differ."""
