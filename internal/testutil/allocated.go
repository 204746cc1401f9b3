package testutil

import "runtime"

// Allocated returns how many bytes f sets aside, those that it lets go of again included.
// What other goroutines do meanwhile counts, too, so it is an upper bound.
func Allocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}
