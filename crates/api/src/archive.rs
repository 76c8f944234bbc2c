//! Packing a file tree into a tar stream, and unpacking one so that nothing leaves the destination.
