use super::*;
use proptest::prelude::*;

#[test]
fn values_are_read_without_being_made() {
    // {"a": (1, -2, 300), "call": os.system("rm")}, protocol 2.
    let bytes = b"\x80\x02}q\x00(U\x01aK\x01J\xfe\xff\xff\xffM\x2c\x01\x87U\x04callcos\nsystem\nU\x02rm\x85Ru.rest";
    let pickle = Pickle::read(bytes).unwrap();
    assert_eq!(pickle.len(), bytes.len() - 4);
    let Value::Dict(items) = pickle.get(pickle.root()) else {
        panic!("{pickle:?}");
    };
    let keys: Vec<_> = items.iter().map(|(key, _)| pickle.text(*key)).collect();
    assert_eq!(keys, [Some("a"), Some("call")]);
    let numbers = pickle.sequence(items[0].1).unwrap();
    let numbers: Vec<_> = numbers.iter().map(|n| pickle.int(*n)).collect();
    assert_eq!(numbers, [Some(1), Some(-2), Some(300)]);
    let Value::Object(object) = pickle.get(items[1].1) else {
        panic!("{pickle:?}");
    };
    assert_eq!(pickle.global(object.callable), Some("os.system"));
}

#[test]
fn shared_and_cyclic_values_are_places() {
    // A list that holds itself: memo 0 put before the append.
    let pickle = Pickle::read(b"]q\x00h\x00a.").unwrap();
    assert_eq!(pickle.sequence(pickle.root()), Some(&[pickle.root()][..]));
}

#[test]
fn whole_numbers_of_any_length() {
    let read = |bytes: &[u8]| {
        let pickle = Pickle::read(bytes).unwrap();
        pickle.int(pickle.root())
    };
    assert_eq!(read(b"\x8a\x00."), Some(0));
    assert_eq!(read(b"\x8a\x02\x00\x80."), Some(-32768));
    assert_eq!(
        read(b"\x8b\x05\x00\x00\x00\x01\x00\x00\x00\x01."),
        Some(0x1_0000_0001)
    );
    assert_eq!(read(b"\x8a\x09\x00\x00\x00\x00\x00\x00\x00\x00\x01."), None);
}

#[test]
fn damage_is_named_with_its_place() {
    let check = |bytes: &[u8], at: usize, problem: &str| {
        let error = Pickle::read(bytes).unwrap_err();
        assert_eq!(error.at, at, "{error}");
        assert!(error.problem.contains(problem), "{error}");
    };
    check(b"", 0, "ends here");
    check(b"\x80\x02", 2, "ends here");
    check(b"\x80\x02.", 2, "stack is empty");
    check(b"K\x01\x86.", 2, "stack is empty");
    check(b"(K\x01u.", 3, "key without a value");
    check(b"h\x07.", 0, "nothing remembered");
    check(b"X\xff\xff\xff\x7f", 0, "ends here");
    check(b"\x8d\xff\xff\xff\xff\xff\xff\xff\xff", 0, "ends here");
    check(b"K\x01(0.", 3, "stack is empty");
    check(b"\x00", 0, "unknown opcode");
    check(b"cos", 0, "line without an end");
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        if let Ok(pickle) = Pickle::read(&bytes) {
            prop_assert!(pickle.values.len() <= bytes.len() && pickle.len() <= bytes.len());
        }
    }
}
