//! Addresses and ports: the only place that knows byte order.

/// An address as 16 bytes; IPv4 is mapped (`::ffff:a.b.c.d`), so one code path serves both families.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct IpKey(pub [u8; 16]);

const _: () = assert!(size_of::<IpKey>() == 16 && align_of::<IpKey>() == 1);

impl IpKey {
    /// No address.
    pub const UNSPECIFIED: Self = Self([0; 16]);

    /// Maps an IPv4 address given as its four bytes.
    pub const fn from_v4(v4: [u8; 4]) -> Self {
        Self([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, v4[0], v4[1], v4[2], v4[3]])
    }

    /// Maps an IPv4 address as the kernel stores it: network order in a native word.
    #[inline(always)]
    pub const fn from_be32(word: u32) -> Self {
        Self::from_v4(word.to_ne_bytes())
    }

    /// An IPv6 address as the kernel stores it: four words in network order.
    #[inline(always)]
    pub fn from_be128(words: [u32; 4]) -> Self {
        let (a, b, c, d) =
            (words[0].to_ne_bytes(), words[1].to_ne_bytes(), words[2].to_ne_bytes(), words[3].to_ne_bytes());
        Self([a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3], c[0], c[1], c[2], c[3], d[0], d[1], d[2], d[3]])
    }

    /// The address of a kernel context that has one field per family. Both fields are read by the caller
    /// before it is known which counts: a read inside a branch lets the compiler merge the branches into
    /// pointer arithmetic on the context, which the verifier refuses.
    #[inline(always)]
    pub fn of_family(v4: bool, ip4: u32, ip6: [u32; 4]) -> Self {
        let words = if v4 { [0, 0, u32::from_ne_bytes([0, 0, 0xff, 0xff]), ip4] } else { ip6 };
        Self::from_be128(words)
    }

    /// The four words of the address in network order.
    #[inline(always)]
    pub fn to_be128(self) -> [u32; 4] {
        let b = self.0;
        [
            u32::from_ne_bytes([b[0], b[1], b[2], b[3]]),
            u32::from_ne_bytes([b[4], b[5], b[6], b[7]]),
            u32::from_ne_bytes([b[8], b[9], b[10], b[11]]),
            u32::from_ne_bytes([b[12], b[13], b[14], b[15]]),
        ]
    }

    /// The last word: the IPv4 address in network order if this is a mapped one.
    #[inline(always)]
    pub fn to_be32(self) -> u32 {
        self.to_be128()[3]
    }

    /// Whether this is an IPv4 address.
    #[inline(always)]
    pub fn is_v4(self) -> bool {
        let words = self.to_be128();
        words[0] == 0 && words[1] == 0 && words[2] == u32::from_ne_bytes([0, 0, 0xff, 0xff])
    }

    /// Whether the address stays inside the host: loopback, or unspecified, which Linux treats so.
    #[inline(always)]
    pub fn is_local(self) -> bool {
        let words = self.to_be128();
        if words[0] != 0 || words[1] != 0 {
            return false;
        }
        if self.is_v4() {
            return self.0[12] == 127 || words[3] == 0;
        }
        words[2] == 0 && (words[3] == 0 || words[3] == 1_u32.to_be())
    }
}

/// A port in network order, as socket address contexts hold it.
#[repr(transparent)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BePort(pub u16);

impl BePort {
    /// Host order.
    #[inline(always)]
    pub const fn host(self) -> u16 {
        u16::from_be(self.0)
    }

    /// From host order.
    #[inline(always)]
    pub const fn from_host(port: u16) -> Self {
        Self(port.to_be())
    }

    /// From `sock_ops.remote_port`, whose network-order port fills the upper half of the word on
    /// little-endian machines.
    #[inline(always)]
    pub const fn from_sock_ops(word: u32) -> Self {
        Self::from_host(u32::from_be(word) as u16)
    }
}
