use bytes::Bytes;
use tidings::bus::{Class, Classic, Envelope};

/// What another node, or anybody who reaches Redis, publishes on a user's channel.
pub fn envelope(data: &[u8]) {
    let bytes = Bytes::copy_from_slice(data);
    let Ok(envelope) = Envelope::decode(bytes.clone()) else { return };
    // Slices of what arrived, in this order, to the end: nothing is made up, nothing left over.
    let frames = match &envelope.classic {
        Classic::Own(frames) => frames.as_slice(),
        Classic::Same | Classic::None => &[],
    };
    let size: usize = frames.iter().map(Bytes::len).sum::<usize>() + envelope.full.len();
    let range = bytes.as_ptr_range();
    assert!(size <= bytes.len() && frames.len() <= bytes.len() / 4);
    for frame in frames.iter().chain([&envelope.full]).filter(|frame| !frame.is_empty()) {
        assert!(range.contains(&frame.as_ptr()), "a frame was copied");
    }
    if envelope.as_order().is_some() {
        assert_eq!(envelope.head.class, Class::Control);
    }
    let again = envelope.encode();
    assert_eq!(again.len(), bytes.len());
    assert_eq!(Envelope::decode(again), Ok(envelope));
}
