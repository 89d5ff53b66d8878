//! libvirt (being written).
