//! One way to declare a type that both compilers lay out.

/// Declares a type of the ABI. Whoever compiles it, for the kernel or for the host, asserts its size, the
/// offset of every field, and that the fields leave no gap; `LAYOUT` lists the same for `abi.txt`.
macro_rules! abi_type {
    (
        $(#[$doc:meta])*
        pub struct $name:ident, $size:literal bytes {
            $($(#[$field_doc:meta])* $offset:literal: pub $field:ident: $type:ty,)+
        }
    ) => {
        $(#[$doc])*
        #[repr(C)]
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub struct $name {
            $($(#[$field_doc])* pub $field: $type,)+
        }

        const _: () = {
            assert!(size_of::<$name>() == $size);
            assert!(0 $(+ size_of::<$type>())+ == $size, "explicit padding only");
            $(assert!(core::mem::offset_of!($name, $field) == $offset);)+
        };

        impl $name {
            /// Name, size in bytes, and the fields with their offsets and types.
            pub const LAYOUT: (&str, usize, &[(&str, usize, &str)]) =
                (stringify!($name), $size, &[$((stringify!($field), $offset, stringify!($type))),+]);
        }
    };
}
