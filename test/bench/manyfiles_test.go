package bench

import (
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"eboot"
	"eboot/internal/testutil"
)

const (
	lookupConnections = 8
	lookupsPerRound   = 4000 // of each connection
	manyFiles         = 100000
	fewFiles          = 100
)

// bigBundle is a tree of n small files, a hundred to a directory, all different.
type bigBundle struct {
	root string
	n    int
}

func makeTree(tb testing.TB, erl testutil.Erlang, n int) bigBundle {
	tb.Helper()
	t := bigBundle{root: newDir(tb), n: n}
	bootable(tb, erl, t.root)
	random := rand.New(rand.NewPCG(1, uint64(n)))
	for i := range n {
		writeFile(tb, t.file(i), fmt.Appendf(nil, "%0*d", 50+random.IntN(300), random.Uint64()))
	}
	return t
}

func (t bigBundle) file(i int) string {
	return filepath.Join(t.root, "lib", fmt.Sprintf("application_%d-1.0", i/100), "ebin", fmt.Sprintf("module_%d.beam", i))
}

// requests asks for files of the tree at random, or for names beside them that do
// not exist.
func (t bigBundle) requests(operation string, present bool) [][]byte {
	random := rand.New(rand.NewPCG(2, uint64(t.n)))
	frames := make([][]byte, lookupsPerRound)
	for i := range frames {
		name := t.file(random.IntN(t.n))
		if !present {
			name += "x"
		}
		frames[i] = testutil.Frame(testutil.Encode(testutil.Tuple{testutil.Atom(operation), testutil.Text(name)}))
	}
	return frames
}

// lookUp sends all frames on each of lookupConnections connections, one after the other.
func lookUp(tb testing.TB, server target, frames [][]byte) (elapsed, cpu time.Duration) {
	tb.Helper()
	conns := make([]net.Conn, lookupConnections)
	for i := range conns {
		conn, err := server.dial()
		if err != nil {
			tb.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
		conns[i] = conn
	}
	errs := make([]error, len(conns))
	var workers sync.WaitGroup
	used := cpuTime(tb, server.pids...)
	began := time.Now()
	for i, conn := range conns {
		workers.Go(func() { errs[i] = exchangeAll(conn, frames) })
	}
	workers.Wait()
	elapsed, cpu = time.Since(began), cpuTime(tb, server.pids...)-used
	for _, err := range errs {
		if err != nil {
			tb.Fatal(err)
		}
	}
	return elapsed, cpu
}

func exchangeAll(conn net.Conn, frames [][]byte) error {
	buffer := make([]byte, 4<<10)
	for _, frame := range frames {
		if _, err := conn.Write(frame); err != nil {
			return err
		}
		have := 0
		for have < 4 || have < 4+int(binary.BigEndian.Uint32(buffer)) {
			n, err := conn.Read(buffer[have:])
			if have += n; err != nil {
				return err
			}
			if have == len(buffer) {
				return fmt.Errorf("reply of more than %d bytes: %w", len(buffer), io.ErrShortBuffer)
			}
		}
	}
	return nil
}

// BenchmarkManyFiles: a bundle of 100,000 files beside one of 100, in one server.
func BenchmarkManyFiles(b *testing.B) {
	erl := testutil.RequireErl(b)
	many, few := makeTree(b, erl, manyFiles), makeTree(b, erl, fewFiles)
	options := serverOptions{Dir: newDir(b), Roots: []string{many.root, few.root}}
	s := startServer(b, options)
	const slaveOfFew, channelOfFew = "127.0.0.2", "few"
	s.publish("few", "1", few.root, "--erts", erl.ERTS, "--channel", channelOfFew)
	s.allow(eboot.WhitelistEntry{Prefix: netip.MustParsePrefix(slaveOfFew + "/32"), Channel: channelOfFew})
	before := settled(b, s.pid())
	published := s.publish("many", "1", many.root, "--erts", erl.ERTS, "--channel", eboot.DefaultChannel)
	again := s.publish("many", "1", many.root, "--erts", erl.ERTS)
	publishing := readResident(b, s.pid())
	after := settled(b, s.pid())
	s.stop()
	s = startServer(b, options)
	s.filePort(erl)
	restarted := settled(b, s.pid())
	manyTarget, fewTarget := s.target(erl, "127.0.0.1"), s.target(erl, slaveOfFew)
	kinds := []lookupKind{
		{name: "metadata of a file", operation: "read_file_info", present: true},
		{name: "a name that does not exist", operation: "get"},
		{name: "content of a file", operation: "get", present: true},
	}
	round := 0
	for b.Loop() {
		for i := range kinds {
			kinds[i].run(b, round, manyTarget, fewTarget, many, few)
		}
		round++
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(published.Seconds(), "s/publish")
	b.ReportMetric(mebibytes(after.now), "MiB")
	summary.note("100,000 files: publish", fmt.Sprintf("%.2f s; again, unchanged %.2f s", published.Seconds(), again.Seconds()))
	summary.note("100,000 files: resident memory", fmt.Sprintf("%.1f MiB after the publish (%.1f before, peak in it %.1f), %.1f after a restart",
		mebibytes(after.now), mebibytes(before.now), mebibytes(publishing.peak), mebibytes(restarted.now)))
	for _, k := range kinds {
		summary.note("100,000 files: "+k.name+" per second", fmt.Sprintf("%.0f, %s of those of 100 files; CPU %.1f and %.1f µs",
			k.rate[0].value(), k.rate[0].over(k.rate[1]), 1e6*k.cpu[0].value(), 1e6*k.cpu[1].value()))
	}
}

// lookupKind is one kind of request and what it took, of the many files and of the few.
type lookupKind struct {
	name, operation string
	present         bool
	rate, cpu       [2]tally
}

func (k *lookupKind) run(tb testing.TB, round int, manyTarget, fewTarget target, many, few bigBundle) {
	tb.Helper()
	one := func(i int, server target, frames [][]byte) func() {
		return func() {
			elapsed, used := lookUp(tb, server, frames)
			n := float64(lookupConnections * len(frames))
			k.rate[i].add(n, elapsed.Seconds())
			k.cpu[i].add(used.Seconds(), n)
		}
	}
	inTurn(round, one(0, manyTarget, many.requests(k.operation, k.present)), one(1, fewTarget, few.requests(k.operation, k.present)))
}
