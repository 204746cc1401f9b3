package bench

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/google/uuid"

	"eboot"
	"eboot/fsm"
	"eboot/internal/testutil"
)

const (
	whitelistSize  = 1000000
	whitelistBatch = 2500 // entries of one command
)

// whitelistEntry is the ith of a million: racks of /24 with their hosts, each /24 an
// entry as well.
func whitelistEntry(i int) eboot.WhitelistEntry {
	a := 10<<24 + uint32(i)
	address := netip.AddrFrom4([4]byte{byte(a >> 24), byte(a >> 16), byte(a >> 8), byte(a)})
	bits := 32
	if byte(a) == 0 {
		bits = 24
	}
	return eboot.WhitelistEntry{Prefix: netip.PrefixFrom(address, bits), Channel: eboot.DefaultChannel, Labels: map[string]string{"rack": fmt.Sprint(a >> 8 & 0xffff)}}
}

// BenchmarkWhitelist: a million prefixes: lookups in memory, and what a server with
// them takes of it.
func BenchmarkWhitelist(b *testing.B) {
	erl := testutil.RequireErl(b)
	options := serverOptions{Dir: newDir(b), Roots: []string{erl.Root}}
	s := startServer(b, options)
	s.publish("otp", "1", erl.Root, "--channel", eboot.DefaultChannel)
	before := settled(b, s.pid())
	machine := fsm.New(nil)
	var took time.Duration
	for i := 0; i < whitelistSize; i += whitelistBatch {
		entries := make([]eboot.WhitelistEntry, whitelistBatch)
		for j := range entries {
			entries[j] = whitelistEntry(i + j)
		}
		began := time.Now()
		s.allow(entries...)
		took += time.Since(began)
		command, err := fsm.AllowSlaves{Header: fsm.Header{RequestID: uuid.NewString(), At: int64(1 + i)}, Entries: entries}.Encode()
		if err != nil {
			b.Fatal(err)
		}
		if result := machine.Apply(uint64(1+i), command).(*fsm.Result); result.Err != nil {
			b.Fatal(result.Err)
		}
	}
	after := settled(b, s.pid())
	s.stop()
	began := time.Now()
	s = startServer(b, options)
	s.filePort(erl)
	started := time.Since(began)
	restarted := settled(b, s.pid())
	state := machine.State()
	if state.WhitelistSize() != whitelistSize {
		b.Fatalf("whitelist of %d", state.WhitelistSize())
	}
	const lookups = 1 << 20
	var times tally
	for b.Loop() {
		began := time.Now()
		for i := range lookups {
			address := 10<<24 + uint32(i)*2654435761%whitelistSize // all over the whitelist
			if _, ok := state.Lookup(netip.AddrFrom4([4]byte{byte(address >> 24), byte(address >> 16), byte(address >> 8), byte(address)})); !ok {
				b.Fatalf("no entry for %d", address)
			}
		}
		times.add(float64(time.Since(began).Nanoseconds()), lookups)
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(times.value(), "ns/lookup")
	summary.atMost("whitelist of a million prefixes: lookup", times.value(), 1000, "< 1 µs", fmt.Sprintf("%.0f ns", times.value()))
	summary.note("whitelist of a million prefixes: resident memory", fmt.Sprintf("%.0f MiB (%.1f before), %.0f after a restart, which took %.1f s; allowed in %.0f s",
		mebibytes(after.now), mebibytes(before.now), mebibytes(restarted.now), started.Seconds(), took.Seconds()))
}
