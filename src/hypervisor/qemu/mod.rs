//! QEMU as a child of our own (being written).
