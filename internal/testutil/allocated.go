package testutil

import "runtime/metrics"

// Allocated returns how many bytes f sets aside, those that it lets go of again included.
// What other goroutines do meanwhile counts, too, and small objects may be counted late, some
// 100 KiB of them and more: with 1 MiB of slack it finds what is out of proportion, at the price of
// a microsecond.
func Allocated(f func()) uint64 {
	read := func() uint64 {
		sample := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
		metrics.Read(sample)
		return sample[0].Value.Uint64()
	}
	before := read()
	f()
	return read() - before
}
