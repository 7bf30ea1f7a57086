"""What half precision and int8 weights lose, and how far correct programs are apart."""
