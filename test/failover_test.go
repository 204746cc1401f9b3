package test

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"eboot"
	"eboot/internal/testnet"
	"eboot/internal/testutil"
)

// trials is one of a kind in every run, the full count in `make acceptance`.
func trials(full int) int {
	if os.Getenv("EBOOT_TEST_ACCEPTANCE") != "" {
		return full
	}
	return 1
}

// masterEval prints the server that the loader of the node is connected to.
const masterEval = `
	[io:format("master ~ts~n", [inet:ntoa(Master)]) || Port <- erlang:ports(),
		erlang:port_info(Port, name) =:= {name, "tcp_inet"}, {ok, {Master, _}} <- [prim_inet:peername(Port)]]`

var masterLine = regexp.MustCompile(`(?m)^master (\S+)$`)

// master is the server that a node with masterEval came from.
func (c *serverCluster) master(t testing.TB, output string) *clusterServer {
	t.Helper()
	found := masterLine.FindAllStringSubmatch(output, -1)
	if len(found) != 1 {
		t.Fatalf("the node names %d servers, want 1; its output:\n%s", len(found), output)
	}
	return c.At(t, found[0][1])
}

// boot boots a node and returns the server that it chose.
func (c *serverCluster) boot(t testing.TB, erl testutil.Erlang, opts testutil.SlaveOptions) (*clusterServer, testutil.Exit) {
	t.Helper()
	opts.Root = slaveRoot
	opts.Eval = loaderIsInet + "," + masterEval + `, io:format("went well~n"), halt(0).`
	exit := checkNode(t, testutil.StartSlave(t, erl, opts), bootDeadline)
	return c.master(t, exit.Output), exit
}

// orders are all orders in which the servers may stand in -hosts.
func orders(hosts []string) [][]string {
	if len(hosts) < 2 {
		return [][]string{hosts}
	}
	var all [][]string
	for i, first := range hosts {
		rest := slices.Delete(slices.Clone(hosts), i, i+1)
		for _, order := range orders(rest) {
			all = append(all, append([]string{first}, order...))
		}
	}
	return all
}

// TestAcceptancePrioritiesAreReal boots slaves of several addresses with -hosts in every
// order: each chooses the server whose rank for it is 0.
func TestAcceptancePrioritiesAreReal(t *testing.T) {
	erl := testutil.RequireErl(t)
	const slaves = 4
	network := testnet.New(t, 3+slaves)
	c := startBootable(t, erl, 3, "10.0.0.0/8", clusterOptions{Network: network})
	hosts := orders(c.Addresses())
	chosen := map[string]int{}
	n := trials(20)
	for i := range n {
		slave := network.Host(3 + i%slaves)
		c.WaitReady(t, erl, slave.Address.String())
		want := c.Favourite(t, erl, slave.Address.String())
		order := hosts[i%len(hosts)]
		got, exit := c.boot(t, erl, testutil.SlaveOptions{Hosts: order, Namespace: slave.Namespace, Embedded: i%2 == 1})
		if got != want {
			t.Errorf("boot %d: slave %s with -hosts %v chose %s; %s has rank 0", i, slave.Address, order, got.Address, want.Address)
		}
		chosen[got.Name]++
		if i >= slaves {
			slave.ChangeAddress() // other addresses have other ranks
		}
		t.Logf("boot %d: %s took %s in %v", i, slave.Name, got.Name, exit.Took.Round(time.Millisecond))
	}
	t.Logf("%d boots, -hosts in %d orders, each from the server with rank 0; servers chosen: %v", n, min(n, len(hosts)), chosen)
}

// TestAcceptanceRanksSpread asks as many slaves: each server is the favourite of as many
// of them. With 1,000 for each server, a tenth is four standard deviations.
func TestAcceptanceRanksSpread(t *testing.T) {
	erl := testutil.RequireErl(t)
	c := startBootable(t, erl, 3, "127.0.0.0/8", clusterOptions{})
	c.WaitReady(t, erl, "127.0.0.1")
	n := 60
	if trials(2) == 2 {
		n = 1000 * len(c.servers)
	}
	ranks := make([]map[*clusterServer]int, len(c.servers)) // by rank: how often each server has it
	for i := range ranks {
		ranks[i] = map[*clusterServer]int{}
	}
	var mu sync.Mutex
	var next atomic.Int64
	var askers sync.WaitGroup
	for range 20 {
		askers.Go(func() {
			for i := next.Add(1) - 1; i < int64(n); i = next.Add(1) - 1 {
				slave := fmt.Sprintf("127.200.%d.%d", i/200, 1+i%200)
				answers := c.discover(t, erl, slave)
				slices.SortFunc(answers, func(a, b discovered) int { return cmp.Compare(a.Priority, b.Priority) })
				mu.Lock()
				for rank, a := range answers {
					if int(a.Priority) != rank || len(answers) != len(c.servers) {
						t.Errorf("slave %s: answers %+v", slave, answers)
						break
					}
					ranks[rank][a.Server]++
				}
				mu.Unlock()
			}
		})
	}
	askers.Wait()
	var report []string
	want := n / len(c.servers)
	for rank, counts := range ranks {
		for _, s := range c.servers {
			report = append(report, fmt.Sprintf("%s has rank %d for %d", s.Name, rank, counts[s]))
			if n >= 1000 && (counts[s] < want*9/10 || counts[s] > want*11/10) {
				t.Errorf("%s has rank %d for %d of %d slaves, want %d within a tenth", s.Name, rank, counts[s], n, want)
			}
			if counts[s] == 0 {
				t.Errorf("%s has rank %d for none of %d slaves", s.Name, rank, n)
			}
		}
	}
	t.Logf("%d slave addresses: %s", n, strings.Join(report, ", "))
}

// TestAcceptanceKillOfTheServerInUse kills the server that slaves have booted from. A
// slave that waits for it, as for a server that hangs until the watchdog kills it, gets its module
// from another one; boots that begin at once are a little slower, and those that begin when the
// others know of it are not.
//
// A slave whose connection is idle at the kill is another matter. The loader of OTP 25 does
// not take notice: its port ends with {tcp_closed, Port} alone, which the loader drops, and no
// {'EXIT', Port, _}, which it waits for (erl_prim_loader.erl, loop/3). It would send its next request to
// the dead port and wait 60 s, unless it has been idle for 60 s: then it has closed the port itself. So
// a server sees to it that no idle connection ends (package sockholder). The full count measures all three.
//
// All that is of the stock loader: ours waits for no server that says nothing for 1.5 s.
func TestAcceptanceKillOfTheServerInUse(t *testing.T) {
	erl := testutil.RequireErl(t)
	c := startBootable(t, erl, 3, "127.0.0.0/8", clusterOptions{})
	setLoader(t, c.client, eboot.LoaderStock)
	const slave = "127.0.0.1"
	c.WaitReady(t, erl, slave)
	n := trials(10)
	var rested *waitingSlave
	if n > 1 {
		rested = c.startWaiting(t, erl, restedEval)
	}
	var load, before, atOnce, later []time.Duration
	var idle []*waitingSlave
	for i := range n {
		c.WaitFormed(t)
		c.WaitReady(t, erl, slave)
		favourite := c.Favourite(t, erl, slave)
		chosen, exit := c.boot(t, erl, testutil.SlaveOptions{Hosts: c.Addresses()})
		if chosen != favourite {
			t.Errorf("trial %d: a slave chose %s, not %s", i, chosen.Name, favourite.Name)
		}
		before = append(before, exit.Took)

		if n > 1 {
			idle = append(idle, c.startWaiting(t, erl, ""))
		}
		waiting, used := c.standing(t, erl)
		used.Kill()
		for _, s := range idle[max(0, len(idle)-1):] {
			s.Tell(t)
		}
		_, exit = c.boot(t, erl, testutil.SlaveOptions{Hosts: c.Addresses()})
		atOnce = append(atOnce, exit.Took)
		load = append(load, waiting.Loaded(t))

		c.WaitReady(t, erl, slave) // the two that are left have ranks 0 and 1
		_, exit = c.boot(t, erl, testutil.SlaveOptions{Hosts: c.Addresses()})
		later = append(later, exit.Took)
		used.Start(t)
	}
	const limit = 1500 * time.Millisecond
	for i, took := range load {
		if took > limit {
			t.Errorf("trial %d: a running slave whose server was killed loaded a module in %v, want at most %v", i, took, limit)
		}
	}
	// Of several boots the median counts: on a busy machine one alone says little.
	const noise = 300 * time.Millisecond
	if more := median(atOnce) - median(before); more > time.Second+noise {
		t.Errorf("boots that began before the others knew took %v more, want at most 1 s", more)
	}
	if more := median(later) - median(before); more > noise {
		t.Errorf("boots that began when the others knew took %v more, want none", more)
	}
	t.Logf("%d kills of the server in use: a running slave that waited for it loaded a module it never had in %v (median; at most %v); boots took %v before, %v at once after, %v when it was known (medians)",
		n, median(load), slices.Max(load), median(before), median(atOnce), median(later))
	if n == 1 {
		return
	}
	var stale []time.Duration
	for _, s := range idle {
		stale = append(stale, s.Loaded(t))
	}
	if worst := slices.Max(stale); worst > limit {
		t.Errorf("a slave whose connection was idle at the kill loaded a module in %v, want at most %v", worst, limit)
	}
	t.Logf("%d slaves whose connection was idle at the kill loaded a module in %v (median; at most %v)", len(stale), median(stale), slices.Max(stale))
	rested.WaitFor(t, "rested")
	c.master(t, rested.Output()).Kill()
	rested.Tell(t)
	took := rested.Loaded(t)
	if took > limit {
		t.Errorf("a slave that had been idle for a minute loaded a module in %v after the kill, want at most %v", took, limit)
	}
	t.Logf("a slave that had been idle for a minute before the kill loaded a module in %v", took)
}

// waitingSlave is a node that is up and loads a module when it is told to.
type waitingSlave struct {
	*testutil.Slave
	trigger string // the file that tells it
}

// restedEval waits until the loader has closed its connection: after 60 s without a request.
const restedEval = `
	Rest = fun Rest() ->
		case [P || P <- erlang:ports(), erlang:port_info(P, name) =:= {name, "tcp_inet"}] of
			[] -> io:format("rested~n");
			_ -> receive after 100 -> Rest() end end end,
	Rest(),`

// startWaiting boots a node that evaluates eval when it is up and then waits. Each of a
// cluster loads another module: what slaves have loaded soon after their boot is what our loader
// brings along the next time.
func (c *serverCluster) startWaiting(t testing.TB, erl testutil.Erlang, eval string) *waitingSlave {
	t.Helper()
	s := &waitingSlave{trigger: filepath.Join(t.TempDir(), "go")}
	c.waiting++
	s.Slave = testutil.StartSlave(t, erl, testutil.SlaveOptions{Hosts: c.Addresses(), Root: slaveRoot,
		Eval: loaderIsInet + fmt.Sprintf(`,
			{ok, Files} = erl_prim_loader:list_dir(code:lib_dir(stdlib) ++ "/ebin"),
			Module = lists:nth(%d, [M || F <- lists:sort(Files), filename:extension(F) =:= ".beam", M <- [list_to_atom(filename:rootname(F))],
				not erlang:module_loaded(M)]),`, c.waiting) + masterEval + `, io:format("up~n"),` + eval + `
			Wait = fun Wait() ->
				case prim_file:read_file_info("` + s.trigger + `") of {ok, _} -> ok; _ -> receive after 5 -> Wait() end end end,
			Wait(),
			Began = erlang:monotonic_time(millisecond),
			{module, Module} = code:ensure_loaded(Module),
			io:format("loaded in ~w ms~n", [erlang:monotonic_time(millisecond) - Began]),
			io:format("went well~n"), halt(0).`})
	s.WaitFor(t, "up")
	return s
}

// WaitFor waits until the node has printed the line.
func (s *waitingSlave) WaitFor(t testing.TB, line string) {
	t.Helper()
	testutil.Poll(t, bootDeadline+time.Minute, "node is to be "+line, func() bool {
		if s.Exited() {
			t.Fatalf("node ended:\n%s", s.Output())
		}
		return strings.Contains(s.Output(), line+"\n")
	})
}

// Tell tells it to load the module.
func (s *waitingSlave) Tell(t testing.TB) { write(t, s.trigger, "") }

var loadedLine = regexp.MustCompile(`(?m)^loaded in (\d+) ms$`)

// Loaded waits for the module and returns how long the node waited for it.
func (s *waitingSlave) Loaded(t testing.TB) time.Duration {
	t.Helper()
	testutil.Poll(t, 90*time.Second, "node is to load a module", func() bool { return s.Exited() })
	found := loadedLine.FindStringSubmatch(s.Output())
	if found == nil {
		t.Fatalf("node ended without its module:\n%s", s.Output())
	}
	took, err := strconv.Atoi(found[1])
	if err != nil {
		t.Fatal(err)
	}
	return time.Duration(took) * time.Millisecond
}

// standing returns a slave whose request stands unread before its server, which is paused.
func (c *serverCluster) standing(t testing.TB, erl testutil.Erlang) (*waitingSlave, *clusterServer) {
	t.Helper()
	for range 5 {
		waiting := c.startWaiting(t, erl, "")
		used := c.master(t, waiting.Output())
		// A node that is up still asks for a module or two.
		testutil.Poll(t, bootDeadline, "node is to be quiet", func() bool {
			boots, err := used.Client.Boots(t.Context(), netip.MustParseAddr("127.0.0.1"))
			if err != nil || len(boots) == 0 {
				return false
			}
			// Our loader says when the boot is over, not when nothing more is asked for.
			return boots[0].Phase == eboot.BootQuiet || boots[0].Phase == eboot.BootStarted && time.Since(boots[0].Latest) > time.Second
		})
		used.Pause()
		waiting.Tell(t)
		began, stands := time.Now(), false
		testutil.Poll(t, bootDeadline, "request is to stand before the paused server", func() bool {
			stands = unread(t, used.Address)
			return stands || waiting.Exited() || time.Since(began) > 3*time.Second
		})
		if stands {
			return waiting, used
		}
		// The pause met the server while it answered something else: the loader waits for
		// that, and its next request with it; ours has gone to another server meanwhile.
		used.Resume()
		waiting.Loaded(t)
	}
	t.Fatal("no request stood before a paused server in five attempts")
	return nil, nil
}

// unread reports whether a request stands unread before a server on the machine's own
// network: /proc/net/tcp has local address, peer, state and queues in its fields 2 to 5, addresses
// as the bytes of the host's order.
func unread(t testing.TB, address string) bool {
	t.Helper()
	// Not /proc/net: that is of the main thread, which a test may have left in another network
	// namespace (the runtime cannot end it, as it ends other threads).
	table, err := os.ReadFile("/proc/thread-self/net/tcp")
	if err != nil {
		t.Fatal(err)
	}
	ip := netip.MustParseAddr(address).As4()
	local := fmt.Sprintf("%08X:", binary.NativeEndian.Uint32(ip[:]))
	for line := range strings.Lines(string(table)) {
		fields := strings.Fields(line)
		const established = "01"
		if len(fields) > 4 && strings.HasPrefix(fields[1], local) && fields[3] == established &&
			bootPort(fields[1]) && !strings.HasSuffix(fields[4], ":00000000") {
			return true
		}
	}
	return false
}

// bootPort reports whether the port of an address in /proc/net/tcp is one of the file
// services, not of the API or of the other servers.
func bootPort(address string) bool {
	port, err := strconv.ParseUint(address[strings.IndexByte(address, ':')+1:], 16, 16)
	return err == nil && port >= 4368 && port < 4380
}

func median(d []time.Duration) time.Duration {
	sorted := slices.Sorted(slices.Values(d))
	return sorted[len(sorted)/2].Round(time.Millisecond)
}

// TestAcceptanceRollingRestart restarts all servers, one after another, while slaves boot
// in both modes: no boot fails, and none waits for the 60 s of a silent server.
func TestAcceptanceRollingRestart(t *testing.T) {
	erl := testutil.RequireErl(t)
	c := startBootable(t, erl, 3, "127.0.0.0/8", clusterOptions{})
	c.WaitReady(t, erl, "127.0.0.1")
	var mu sync.Mutex
	var boots []time.Duration
	var stop atomic.Bool
	var booting sync.WaitGroup
	hosts := c.Addresses() // these do not change
	for i := range 2 {
		booting.Go(func() {
			for !stop.Load() && !t.Failed() {
				node := testutil.StartSlave(t, erl, testutil.SlaveOptions{Hosts: hosts, Root: slaveRoot, Embedded: i == 1,
					Eval: loaderIsInet + `, io:format("went well~n"), halt(0).`})
				exit := checkNode(t, node, 3*bootDeadline)
				mu.Lock()
				boots = append(boots, exit.Took)
				mu.Unlock()
			}
		})
	}
	defer func() { stop.Store(true); booting.Wait() }()
	rounds := trials(10)
	var restarts []time.Duration
	for range rounds {
		for _, s := range c.servers {
			began := time.Now()
			s.Stop(t)
			s.Start(t)
			c.WaitFormed(t)
			c.WaitReady(t, erl, "127.0.0.1")
			restarts = append(restarts, time.Since(began))
		}
	}
	stop.Store(true)
	booting.Wait()
	if t.Failed() {
		return
	}
	if len(boots) < 3*rounds {
		t.Errorf("only %d slaves booted during %d restarts: nothing was tested", len(boots), len(restarts))
	}
	// A stock node that hits a silent server waits 60 s for it.
	if worst := slices.Max(boots); worst > 20*time.Second {
		t.Errorf("a boot took %v", worst)
	}
	t.Logf("%d restarts (median %v from the order to stop until it answered again) while %d slaves booted: %v median, %v at most",
		len(restarts), median(restarts), len(boots), median(boots), slices.Max(boots).Round(time.Millisecond))
}
