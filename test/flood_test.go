package test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"eboot/internal/testnet"
	"eboot/internal/testutil"
)

// floodMemory is how much larger a server may get by the flood, in bytes.
const floodMemory = 96 << 20

// An attacker holds thousands of connections that are stuck or slow and sends junk and
// requests at a high rate, while a real node at another address boots: in at most twice the time that it
// takes without him. He is at an address that may boot, then at one that may not; then he may
// take every place there is.
//
// What is measured is the server, so the generator has a core of its own, the last, and all else
// the others: the test, the server and its slave, both with the attacker and without him. The
// kernel handles what is sent between two namespaces of one machine on the core of the sender,
// up to the server's socket, and so on the generator's: as a network card's interrupts
// would be on a core that is not the server's. What the server itself does for each
// datagram and connection it does on the slave's core.
func TestAcceptanceFlood(t *testing.T) {
	erl := testutil.RequireErl(t)
	testutil.RequireNetwork(t)
	rate, connections, boots := 10_000, 500, 3
	slack, least := time.Second, int64(rate/2) // few boots, and other tests at the same time
	if acceptance() {
		rate, connections, boots, slack, least = 100_000, 5000, 7, 0, 90_000
	}
	others, generator, err := shareCPUs()
	if err != nil {
		t.Skip(err)
	}
	if err := pinSelf(others); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := pinSelf(append(slices.Clone(others), generator...)); err != nil {
			t.Error(err)
		}
	})
	for _, c := range []struct {
		what        string
		whitelisted bool
		settings    []string
	}{
		{"whitelisted", true, nil},
		{"stranger", false, nil},
		{"every place taken", true, []string{
			fmt.Sprint("EBOOT_BOOT_LIMITS_CONNECTIONS=", connections), fmt.Sprint("EBOOT_BOOT_LIMITS_CONNECTIONS_PER_ADDRESS=", connections),
		}},
	} {
		t.Run(c.what, func(t *testing.T) {
			network := testnet.New(t, 3)
			slave, attacker := network.Host(1), network.Host(2)
			cluster := startCluster(t, 1, clusterOptions{Network: network, Settings: c.settings})
			tree := smallTree(t, erl)
			write(t, filepath.Join(tree, "lib", "big"), strings.Repeat("big.", 2<<20))
			cluster.Publish(t, erl, "otp", "1", tree)
			cluster.Allow(t, slave.Address.String())
			if c.whitelisted {
				cluster.Allow(t, attacker.Address.String())
			}
			cluster.WaitReady(t, erl, slave.Address.String())
			s := cluster.servers[0]

			boot := func() testutil.Exit {
				_, exit := cluster.boot(t, erl, testutil.SlaveOptions{Hosts: cluster.Addresses(), Namespace: slave.Namespace})
				return exit
			}
			measure := func() time.Duration {
				var took []time.Duration
				for range boots {
					exit := boot()
					took = append(took, exit.Took.Round(time.Millisecond))
				}
				slices.Sort(took)
				t.Logf("boots: %v", took)
				return took[len(took)/2]
			}
			boot() // what is in no cache yet
			before := measure()
			memory, lines, counted := residentMemory(t, s.PID()), strings.Count(s.Output(), "\n"), s.counters(t)

			f := flood{
				Discovery: hostPort(s.Address, testutil.DiscoveryPort), ERTS: erl.ERTS, Rate: rate,
				Files: hostPort(s.Address, cluster.filePort(t, erl, slave)), Connections: connections, Attempts: 2 * connections / 5,
				Big: slaveRoot + "/lib/big", CPUs: generator,
			}
			generating := startFlood(t, attacker, f)
			testutil.Poll(t, time.Minute, "the flood is to be at its height", func() bool {
				r, ok := floodReported(t, generating)
				return ok && r.Opened >= int64(connections) && r.Rate >= least
			})
			first, _ := floodReported(t, generating)
			began := time.Now()
			during := measure()
			lasted := time.Since(began)
			last, _ := floodReported(t, generating)
			now := s.counters(t)
			generating.Kill()
			grown := peakMemory(t, s.PID()) - memory
			logged := strings.Count(s.Output(), "\n") - lines

			t.Logf("median boot %v before, %v during (%.2f times)", before, during, during.Seconds()/before.Seconds())
			reached := int64(float64(last.Datagrams-first.Datagrams) / (last.At - first.At))
			t.Logf("sent %d datagrams a second for %v; opened %d connections, %d open at the end", reached, lasted.Round(time.Second), last.Opened, last.Open)
			for _, name := range floodCounters {
				t.Logf("eboot_%s: %d", name, now[name]-counted[name])
			}
			t.Logf("the server was %d MiB before, %d MiB more at most; %d lines", memory>>20, grown>>20, logged)
			if during > 2*before+slack {
				t.Errorf("a boot takes %v during the flood, %v before", during, before)
			}
			if reached < least {
				t.Errorf("the generator sent %d datagrams a second, want %d: nothing is shown", reached, least)
			}
			if grown > floodMemory {
				t.Errorf("the server grew by %d MiB", grown>>20)
			}
			if logged >= 100 {
				t.Errorf("%d lines were logged; the last: %s", logged, tail(s.Output()))
			}
			if taken := now["discovery_requests_total"] - counted["discovery_requests_total"]; taken == 0 {
				t.Error("the server has seen no request of the flood")
			}
			if !c.whitelisted && now["file_connections_denied_total"] == counted["file_connections_denied_total"] {
				t.Error("no connection of the stranger was refused")
			}
			if c.settings != nil && now["file_connections_displaced_total"] == counted["file_connections_displaced_total"] {
				t.Error("no stuck connection made room for the slave")
			}
		})
	}
}

// startFlood runs a generator on a host: this test's own program.
func startFlood(t testing.TB, host *testnet.Host, f flood) *testnet.Process {
	t.Helper()
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	settings, err := json.Marshal(f)
	if err != nil {
		t.Fatal(err)
	}
	return host.Start(t, testnet.Command{Args: []string{program}, Env: []string{floodEnvironment + "=" + string(settings)}, Name: "flood"})
}

// floodReported is the latest line of a generator.
func floodReported(t testing.TB, p *testnet.Process) (r floodReport, ok bool) {
	t.Helper()
	if !p.Running() {
		t.Fatalf("the generator ended: %s", tail(p.Output()))
	}
	lines := bytes.Split([]byte(p.Output()), []byte("\n"))
	if len(lines) < 2 {
		return r, false
	}
	if err := json.Unmarshal(lines[len(lines)-2], &r); err != nil {
		t.Fatalf("the generator said %q", lines[len(lines)-2])
	}
	return r, true
}

// filePort is the TCP port that the slave on a host is told.
func (c *serverCluster) filePort(t testing.TB, erl testutil.Erlang, slave *testnet.Host) uint16 {
	t.Helper()
	conn, err := c.listenUDP(slave.Address.String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	replies := testutil.Discover(t, conn, erl.ERTS, time.Second, c.Addresses()...)
	if len(replies) == 0 {
		t.Fatal("no answer to discovery")
	}
	return replies[0].Port
}

// floodCounters are the counters that tell what became of a flood.
var floodCounters = []string{
	"discovery_requests_total", "discovery_answers_total", "discovery_refused_total", "discovery_malformed_total", "discovery_limited_total", "discovery_dropped_total",
	"file_connections_total", "file_connections_rejected_total", "file_connections_displaced_total", "file_connections_denied_total", "file_timeouts_total",
}

// counters reads them from the metrics of a server.
func (s *clusterServer) counters(t testing.TB) map[string]int {
	t.Helper()
	text := s.get(t, "/metrics")
	counted := map[string]int{}
	for _, name := range floodCounters {
		found := regexp.MustCompile(`(?m)^eboot_` + name + ` (\S+)$`).FindSubmatch(text)
		if found == nil {
			t.Fatalf("no metric %s in %s", name, text)
		}
		value, err := strconv.ParseFloat(string(found[1]), 64)
		if err != nil {
			t.Fatal(err)
		}
		counted[name] = int(value)
	}
	return counted
}
