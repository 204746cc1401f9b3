package test

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"eboot"
	"eboot/api"
	"eboot/internal/testutil"
)

// What is true in a node whose boot script brought eboot's loader, and in one whose did not.
const (
	loaderIsOurs  = loaderIsInet + `, true = erlang:module_loaded(eboot_loader)`
	loaderIsStock = loaderIsInet + `, false = erlang:module_loaded(eboot_loader)`
)

// acceptance reports whether the full counts are to run.
func acceptance() bool { return os.Getenv("EBOOT_TEST_ACCEPTANCE") != "" }

// many is `few` in every run, the full count in `make acceptance`.
func many(few, full int) int {
	if acceptance() {
		return full
	}
	return few
}

// slack is what a limit in time may be exceeded by: a machine that runs other tests beside
// this one, under the race detector, says little about time.
func slack() time.Duration {
	if acceptance() {
		return 0
	}
	return time.Second
}

// setLoader sets the loader of channel stable: eboot.LoaderEboot or eboot.LoaderStock.
func setLoader(t testing.TB, client *api.Client, loader string) {
	t.Helper()
	if _, err := client.SetChannel(t.Context(), eboot.DefaultChannel, api.ChannelSet{Options: eboot.ChannelOptions{Loader: loader}}); err != nil {
		t.Fatalf("set the loader of channel %s: %v", eboot.DefaultChannel, err)
	}
}

// ways are the ways of slaves to the servers of a cluster, each a delay proxy.
type ways struct {
	cluster   *serverCluster
	addresses []string // of the proxies: -hosts

	mu     sync.Mutex
	delays []*testutil.Delay
}

// newWays takes the addresses; Open makes the proxies.
func newWays(t testing.TB, c *serverCluster) *ways {
	t.Helper()
	w := &ways{cluster: c}
	for range c.servers {
		w.addresses = append(w.addresses, takeAddress(t))
	}
	return w
}

// Open makes the ways anew, after they were cut or severed. `set` may set what else a proxy
// is to do; it may be nil.
func (w *ways) Open(t testing.TB, set func(i int, opts *testutil.DelayOptions)) {
	t.Helper()
	w.Close()
	w.mu.Lock() // a proxy may be asked before the last is there
	defer w.mu.Unlock()
	for i, s := range w.cluster.servers {
		opts := testutil.DelayOptions{Address: w.addresses[i], Server: s.Address}
		if set != nil {
			set(i, &opts)
		}
		w.delays = append(w.delays, testutil.StartDelay(t, opts))
	}
}

// open returns the ways that there are.
func (w *ways) open() []*testutil.Delay {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.delays)
}

// Close takes them away.
func (w *ways) Close() {
	for _, d := range w.open() {
		d.Close()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.delays = nil
}

// Requests are what slaves have sent on all ways, connection after connection.
func (w *ways) Requests() []testutil.Exchanged {
	var all []testutil.Exchanged
	for _, d := range w.open() {
		all = append(all, d.Requests()...)
	}
	return all
}

// String tells what each server was asked.
func (w *ways) String() string {
	var all []string
	for i, d := range w.open() {
		all = append(all, fmt.Sprintf("%s in %d connections %s", w.cluster.servers[i].Name, d.Connections(), commands(d.Requests())))
	}
	return strings.Join(all, "; ")
}

// Received is how many bytes slaves were sent on all ways.
func (w *ways) Received() int64 {
	var sum int64
	for _, d := range w.open() {
		sum += d.Received()
	}
	return sum
}

// commandOf is what a request asks for: "get", "eboot_open".
func commandOf(e testutil.Exchanged) string {
	switch term := e.Term().(type) {
	case testutil.Atom:
		return string(term)
	case testutil.Tuple:
		if len(term) > 0 {
			return fmt.Sprint(term[0])
		}
	}
	return "?"
}

// commands counts requests by what they ask for: "12: 1 get, 1 eboot_open, …".
func commands(requests []testutil.Exchanged) string {
	counts := map[string]int{}
	var order []string
	for _, e := range requests {
		name := commandOf(e)
		if counts[name] == 0 {
			order = append(order, name)
		}
		counts[name]++
	}
	parts := make([]string, len(order))
	for i, name := range order {
		parts[i] = fmt.Sprintf("%d %s", counts[name], name)
	}
	return fmt.Sprintf("%d: %s", len(requests), strings.Join(parts, ", "))
}

// opened reports whether a slave has begun to speak as our loader.
func opened(requests []testutil.Exchanged) bool {
	return slices.ContainsFunc(requests, func(e testutil.Exchanged) bool { return commandOf(e) == "eboot_open" })
}

// point is one of a boot: when something is done to the server in use.
type point struct {
	after time.Duration // since the node was started; or
	share float64       // of the bytes of an undisturbed boot have come; or
	open  bool          // our loader speaks for the first time
}

func (p point) String() string {
	switch {
	case p.open:
		return "at the takeover"
	case p.share > 0:
		return fmt.Sprintf("at %.0f%% of the bytes", 100*p.share)
	}
	return fmt.Sprintf("after %v", p.after.Round(time.Millisecond))
}

// undisturbed is what boots are like to which nothing happens.
type undisturbed struct {
	took  []time.Duration
	bytes int64
}

// boots boots nodes and does something in the middle.
type boots struct {
	t       testing.TB
	erl     testutil.Erlang
	cluster *serverCluster
	ways    *ways
	normal  map[bool]*undisturbed // by embedded
}

const bootSlave = "127.0.0.1"

// bootSlaveAddress is that of nodes on the network of this machine.
var bootSlaveAddress = netip.MustParseAddr(bootSlave)

// newBoots boots n undisturbed nodes in both modes, after two that teach the servers what a
// boot needs.
func newBoots(t testing.TB, erl testutil.Erlang, c *serverCluster, n int) *boots {
	t.Helper()
	b := &boots{t: t, erl: erl, cluster: c, ways: newWays(t, c), normal: map[bool]*undisturbed{}}
	c.WaitReady(t, erl, bootSlave)
	for _, embedded := range []bool{false, true} {
		normal := &undisturbed{}
		b.normal[embedded] = normal
		for i := range 2 + n {
			b.ways.Open(t, nil)
			exit := b.boot(embedded, bootDeadline)
			if i >= 2 {
				normal.took = append(normal.took, exit.Took)
				normal.bytes = b.ways.Received()
			}
		}
		t.Logf("%s: %d undisturbed boots took %v (median; %v to %v), %d bytes, requests %s", modeName(embedded), n, median(normal.took),
			slices.Min(normal.took).Round(time.Millisecond), slices.Max(normal.took).Round(time.Millisecond), normal.bytes, commands(b.ways.Requests()))
	}
	return b
}

func modeName(embedded bool) string {
	if embedded {
		return "embedded"
	}
	return "interactive"
}

// boot boots a node over the ways as they are.
func (b *boots) boot(embedded bool, deadline time.Duration) testutil.Exit {
	b.t.Helper()
	return checkNode(b.t, b.start(embedded), deadline)
}

func (b *boots) start(embedded bool) *testutil.Slave {
	b.t.Helper()
	return testutil.StartSlave(b.t, b.erl, testutil.SlaveOptions{Hosts: b.ways.addresses, Root: slaveRoot, Embedded: embedded,
		Eval: loaderIsOurs + `, erlang:display_string("went well\n"), halt(0).`})
}

// disturbed is what became of a boot to which something happened.
type disturbed struct {
	exit    testutil.Exit
	later   time.Duration // than the median of the undisturbed ones
	reached bool          // the point was: the boot was not over before
	ours    bool          // our loader had taken over
	used    *clusterServer
	seen    string // what the servers were asked
}

// Disturb boots a node and does something to the server in use at a point. `do` is called
// by another goroutine: it must not fail the test. The ways are closed when it returns.
func (b *boots) Disturb(embedded bool, p point, deadline time.Duration, do func(used *clusterServer, way *testutil.Delay)) disturbed {
	b.t.Helper()
	defer func() {
		if b.t.Failed() {
			b.t.Logf("the node asked %s", b.ways)
		}
	}()
	used := b.cluster.Favourite(b.t, b.erl, bootSlave)
	at := slices.Index(b.cluster.servers, used)
	var once sync.Once
	var d disturbed
	strike := func() {
		once.Do(func() {
			d.ours = opened(b.ways.Requests())
			d.reached = true
			do(used, b.ways.open()[at])
		})
	}
	b.ways.Open(b.t, func(i int, opts *testutil.DelayOptions) {
		if i != at {
			return
		}
		switch {
		case p.open:
			opts.OnRequest = func(e testutil.Exchanged) {
				if commandOf(e) == "eboot_open" {
					strike()
				}
			}
		case p.share > 0:
			opts.OnReceived = func(total int64) {
				if float64(total) >= p.share*float64(b.normal[embedded].bytes) {
					strike()
				}
			}
		}
	})
	node := b.start(embedded)
	over := make(chan struct{})
	var timer sync.WaitGroup
	if !p.open && p.share == 0 {
		timer.Go(func() {
			select {
			case <-time.After(p.after):
				strike()
			case <-over:
			}
		})
	}
	d.exit = checkNode(b.t, node, deadline)
	close(over)
	timer.Wait()
	d.seen = b.ways.String()
	b.ways.Close() // its goroutines have ended: d is ours
	d.used = used
	d.later = d.exit.Took - median(b.normal[embedded].took)
	return d
}

// spread is how much later than the median an undisturbed boot was at most: what a limit
// must leave to chance.
func (b *boots) spread(embedded bool) time.Duration {
	took := b.normal[embedded].took
	return max(0, slices.Max(took)-median(took))
}
