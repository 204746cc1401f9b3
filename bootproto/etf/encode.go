package etf

import (
	"encoding/binary"
	"math"
)

// AppendTuple begins a tuple; its n elements are to follow. n is at most 255.
func AppendTuple(dst []byte, n int) []byte {
	return append(dst, tagSmallTuple, byte(n))
}

// AppendList begins a list of n > 0 elements; they are to follow, then the tail,
// AppendNil for a proper list. A list of no elements is AppendNil alone.
func AppendList(dst []byte, n int) []byte {
	return binary.BigEndian.AppendUint32(append(dst, tagList), uint32(n))
}

// AppendNil appends the empty list.
func AppendNil(dst []byte) []byte { return append(dst, tagNil) }

// AppendMap begins a map of n pairs; they are to follow, each a key and its value.
// No key may be there twice.
func AppendMap(dst []byte, n int) []byte {
	return binary.BigEndian.AppendUint32(append(dst, tagMap), uint32(n))
}

// AppendAtom appends an atom of at most 255 bytes of UTF-8, as
// SMALL_ATOM_UTF8_EXT, which every release since R16 reads and which is what OTP
// 26 and later write.
func AppendAtom(dst []byte, text string) []byte {
	return append(append(dst, tagSmallAtomUTF8, byte(len(text))), text...)
}

// AppendInteger appends an integer in the shortest form, as term_to_binary does.
func AppendInteger(dst []byte, n int64) []byte {
	switch {
	case 0 <= n && n <= math.MaxUint8:
		return append(dst, tagSmallInteger, byte(n))
	case math.MinInt32 <= n && n <= math.MaxInt32:
		return binary.BigEndian.AppendUint32(append(dst, tagInteger), uint32(n))
	}
	magnitude, sign := uint64(n), byte(0)
	if n < 0 {
		magnitude, sign = -magnitude, 1
	}
	dst = append(dst, tagSmallBig, 0, sign)
	digits := len(dst)
	for ; magnitude > 0; magnitude >>= 8 {
		dst = append(dst, byte(magnitude))
	}
	dst[digits-2] = byte(len(dst) - digits)
	return dst
}

// AppendBinary begins a binary; its size bytes are to follow. Size is at most
// 2^32-1.
func AppendBinary(dst []byte, size int64) []byte {
	return binary.BigEndian.AppendUint32(append(dst, tagBinary), uint32(size))
}

// AppendName appends a name as the list of its code points, in the form
// term_to_binary gives it: NIL_EXT when it is empty, STRING_EXT when all code
// points are below 256 and there are at most 65,535 of them, else LIST_EXT. The
// name is UTF-8; a byte that is not becomes U+FFFD.
func AppendName(dst []byte, name string) []byte {
	points, latin := 0, true
	for _, r := range name {
		points++
		latin = latin && r <= math.MaxUint8
	}
	switch {
	case points == 0:
		return AppendNil(dst)
	case latin && points <= math.MaxUint16:
		dst = binary.BigEndian.AppendUint16(append(dst, tagString), uint16(points))
		if points == len(name) {
			return append(dst, name...)
		}
		for _, r := range name {
			dst = append(dst, byte(r))
		}
		return dst
	default:
		dst = AppendList(dst, points)
		for _, r := range name {
			dst = AppendInteger(dst, int64(r))
		}
		return AppendNil(dst)
	}
}
