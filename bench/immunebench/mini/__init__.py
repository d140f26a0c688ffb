"""The embedded world ``mini``: a procedural picture world, two small bases and the judges that measure them."""
