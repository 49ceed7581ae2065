//! Messages of kernels in the form in which agents pass them on, and the outputs in them.
#![no_main]

use bytes::Bytes;
use cellkeep::output::repair_output;
use cellkeep::wire::{Message, Signer, content};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Ok(message) = Message::unpack(&Bytes::copy_from_slice(input)) else { return };
    let _ = (message.header(), message.parent(), message.size(), message.output_size());
    let value = message.content_value();
    let _ = (content::execution_state(&value), content::reply_status(&value), content::ErrorInfo::read(&value));
    repair_output(value);
    assert_eq!(Message::unpack(&Bytes::from(message.pack().concat())).ok().as_ref(), Some(&message));
    let Some(signer) = Signer::new(b"key") else { return };
    let again = Message::from_frames(message.to_frames(&signer), &signer);
    assert!(again.is_err() || again.ok() == Some(message));
});
