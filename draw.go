package eboot

import "net/netip"

// Draw gives a slave a number, spread evenly over all numbers, that every server of every
// version draws alike for the same seed: who comes first, and who is chosen, need not be
// agreed on. It allocates nothing, as each search of a slave asks for it.
func Draw(seed uint64, slave netip.Addr) uint64 {
	address := slave.As16()
	x := fnv1a(seed, address[:])
	// FNV alone leaves the high bits of close addresses alike (finalizer of MurmurHash3).
	x ^= x >> 33
	x *= 0xff51afd7ed558ccd
	x ^= x >> 33
	x *= 0xc4ceb9fe1a85ec53
	x ^= x >> 33
	return x
}

// DrawSeed makes the seed of what texts name together.
func DrawSeed(texts ...string) uint64 {
	hash := uint64(0xcbf29ce484222325)
	for _, text := range texts {
		hash = fnv1a(hash, text)
	}
	return hash
}

// fnv1a goes on with a hash of FNV-1a, 64 bits, which package hash/fnv does not do without
// allocating.
func fnv1a[T string | []byte](hash uint64, text T) uint64 {
	for i := range len(text) {
		hash = (hash ^ uint64(text[i])) * 0x100000001b3
	}
	return hash
}
