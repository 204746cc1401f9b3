package fsm

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/gaissmai/bart"

	"eboot"
)

// million makes a whitelist as large sites have it: hosts in racks of /24, and
// one network in eight.
func million(tb testing.TB) (*State, []netip.Addr) {
	tb.Helper()
	random := rand.New(rand.NewPCG(1, 2))
	table := new(bart.Table[*eboot.WhitelistEntry])
	shared := &interner{}
	addresses := make([]netip.Addr, 0, 1<<16)
	for table.Size() < 1_000_000 {
		a := netip.AddrFrom4([4]byte{10 + byte(random.IntN(4)), byte(random.IntN(256)), byte(random.IntN(64)), byte(random.IntN(256))})
		bits := 32
		if random.IntN(8) == 0 {
			bits = 24 + random.IntN(8)
		}
		p, _ := a.Prefix(bits)
		table.Insert(p, shared.entry(eboot.WhitelistEntry{Prefix: p, Channel: "stable"}))
		if len(addresses) < cap(addresses) {
			addresses = append(addresses, a)
		}
	}
	s := *emptyState()
	s.whitelist = table
	return newState(s), addresses
}

func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

func BenchmarkWhitelistLookup1M(b *testing.B) {
	before := heap()
	s, addresses := million(b)
	used := float64(heap() - before)
	found := 0
	i := 0
	for b.Loop() {
		if _, ok := s.Lookup(addresses[i&(len(addresses)-1)]); ok {
			found++
		}
		i++
	}
	b.ReportMetric(used/float64(s.WhitelistSize()), "bytes/prefix")
	if found == 0 {
		b.Fatal("nothing found")
	}
}

// A change of a large whitelist copies what it touches only.
func BenchmarkAllow1In1M(b *testing.B)    { benchmarkAllow(b, 1) }
func BenchmarkAllow5000In1M(b *testing.B) { benchmarkAllow(b, 5000) }

func benchmarkAllow(b *testing.B, n int) {
	s, _ := million(b)
	random := rand.New(rand.NewPCG(3, 4))
	c := AllowSlaves{Header: Header{RequestID: "x"}}
	for range n {
		a := netip.AddrFrom4([4]byte{10, byte(random.IntN(256)), byte(random.IntN(64)), byte(random.IntN(256))})
		c.Entries = append(c.Entries, eboot.WhitelistEntry{Prefix: netip.PrefixFrom(a, 32), Channel: "canary"})
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, r := s.perform(2, c, fingerprint{}); r.Err != nil {
			b.Fatal(r.Err)
		}
	}
}

func BenchmarkSnapshotWrite1M(b *testing.B) {
	s, _ := million(b)
	var size int64
	for b.Loop() {
		n, err := s.WriteTo(io.Discard)
		if err != nil {
			b.Fatal(err)
		}
		size = n
	}
	b.ReportMetric(float64(size), "bytes")
}

func BenchmarkSnapshotRead1M(b *testing.B) {
	s, _ := million(b)
	var out bytes.Buffer
	if _, err := s.WriteTo(&out); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := ReadState(bytes.NewReader(out.Bytes())); err != nil {
			b.Fatal(err)
		}
	}
}

// TestReadersOfOldStates reads old and new states from several goroutines while
// the whitelist changes: for the race detector, and for the answers.
func TestReadersOfOldStates(t *testing.T) {
	l := newLog(t)
	var stop atomic.Bool
	var readers sync.WaitGroup
	for range 3 {
		readers.Go(func() {
			for !stop.Load() {
				s := l.machine.State()
				n := 0
				for e := range s.Whitelist() {
					if found, ok := s.Lookup(e.Prefix.Addr()); !ok || found.Prefix.Bits() < e.Prefix.Bits() {
						t.Errorf("%s is not found at index %d", e.Prefix, s.Index())
						return
					}
					n++
				}
				if n != s.WhitelistSize() {
					t.Errorf("%d entries of %d at index %d", n, s.WhitelistSize(), s.Index())
					return
				}
				s.Digest()
			}
		})
	}
	random := rand.New(rand.NewPCG(5, 6))
	for range 300 {
		entries := make([]eboot.WhitelistEntry, 0, 20)
		seen := map[netip.Prefix]bool{}
		for range 20 {
			p, _ := netip.AddrFrom4([4]byte{10, 0, byte(random.IntN(4)), byte(random.IntN(256))}).Prefix(20 + random.IntN(13))
			if !seen[p] {
				entries = append(entries, eboot.WhitelistEntry{Prefix: p, Channel: []string{"stable", "canary"}[random.IntN(2)]})
			}
			seen[p] = true
		}
		l.must(AllowSlaves{Header: l.header(), Entries: entries})
		l.must(DenySlaves{Header: l.header(), Prefixes: []netip.Prefix{entries[0].Prefix, entries[len(entries)-1].Prefix}})
	}
	stop.Store(true)
	readers.Wait()
}

// audited is a state with as many answers and events as there may be, and n tokens.
func audited(b *testing.B, n int) *State {
	l := raised(b)
	for i := range n {
		id, digest, err := eboot.ParseToken(eboot.FormatToken([8]byte{byte(i), byte(i >> 8)}, [32]byte{1}))
		if err != nil {
			b.Fatal(err)
		}
		l.must(CreateToken{Header: l.by(), Token: eboot.Token{ID: id, Name: fmt.Sprint("t", i), Role: eboot.RoleViewer, Digest: digest}})
	}
	for i := range rememberedRequests {
		h := l.by()
		h.RequestID = fmt.Sprintf("6f2c9c0e-3d0e-4f4b-9a53-%012d", i)
		l.must(AllowSlaves{Header: h, Entries: []eboot.WhitelistEntry{entryOf("10.0.0.0/8", fmt.Sprint("channel", i%2), nil)}})
	}
	return l.machine.State()
}

// What the audit adds to a snapshot: "earlier" is as many events as there were before it.
func BenchmarkSnapshotOfAudit(b *testing.B) {
	s := audited(b, eboot.MaxTokens)
	for name, events := range map[string]int{"earlier": earlierMaxEvents, "full": MaxEvents} {
		fewer := *s
		fewer.events = s.events[len(s.events)-events:]
		if events == earlierMaxEvents {
			fewer.tokens = nil
		}
		b.Run(name+"/write", func(b *testing.B) {
			var size int64
			for b.Loop() {
				n, err := newState(fewer).WriteTo(io.Discard)
				if err != nil {
					b.Fatal(err)
				}
				size = n
			}
			b.ReportMetric(float64(size), "bytes")
		})
		b.Run(name+"/read", func(b *testing.B) {
			text := snapshotOf(b, newState(fewer))
			for b.Loop() {
				if _, err := ReadState(bytes.NewReader(text)); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(name+"/digest", func(b *testing.B) {
			for b.Loop() {
				newState(fewer).Digest()
			}
		})
	}
}

// Each request of the API asks for its token.
func BenchmarkToken(b *testing.B) {
	s := audited(b, eboot.MaxTokens)
	id := s.Tokens()[500].ID
	b.ReportAllocs()
	for b.Loop() {
		if _, ok := s.Token(id); !ok {
			b.Fatal("not found")
		}
	}
}
