package etf

import (
	"math/rand/v2"
	"os"
	"runtime"
	"testing"
)

// TestAcceptanceRandomFrames decodes random terms, two thirds of them damaged, and random bytes: a
// million with EBOOT_TEST_ACCEPTANCE=1. Nothing panics, and what is set aside for all of them is at most
// four times their bytes; in truth it is nothing.
func TestAcceptanceRandomFrames(t *testing.T) {
	n := 50_000
	if os.Getenv("EBOOT_TEST_ACCEPTANCE") == "1" {
		n = 1_000_000
	}
	rnd := rand.New(rand.NewPCG(3, 4))
	name := make([]byte, 0, 64<<10)
	var bytes, set uint64
	accepted := 0
	for done := 0; done < n; {
		frames := make([][]byte, 0, 10_000)
		for len(frames) < cap(frames) && done+len(frames) < n {
			b := randomFrame(rnd)
			for range rnd.IntN(3) * 2 {
				b[1+rnd.IntN(len(b)-1)] = byte(rnd.Uint32())
			}
			if len(frames)%5 == 0 { // no term at all, but for the beginning
				for i := 1; i < len(b); i++ {
					b[i] = byte(rnd.Uint32())
				}
			}
			frames = append(frames, b)
			bytes += uint64(len(b))
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for _, b := range frames {
			d, err := NewDecoder(b)
			if err != nil {
				continue
			}
			names := d
			if d.Skip() == nil {
				accepted++
			}
			if t, err := names.Next(); err == nil && t.Kind == Tuple && t.Len == 2 && names.Skip() == nil {
				name, _ = names.AppendName(name[:0])
			}
		}
		runtime.ReadMemStats(&after)
		set += after.TotalAlloc - before.TotalAlloc
		done += len(frames)
	}
	if set > 4*bytes || accepted < n/10 || accepted > n*9/10 {
		t.Errorf("%d frames of %d bytes, %d accepted: %d bytes set aside", n, bytes, accepted, set)
	}
	t.Logf("%d frames of %d bytes, %d accepted: %d bytes set aside", n, bytes, accepted, set)
}
