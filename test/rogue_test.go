package test

import (
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"eboot"
	"eboot/internal/testnet"
	"eboot/internal/testutil"
)

// The log of an alarm.
const alarmText = "a stranger answers slaves"

// looker is a host that hears the queries which go to all of its network, and says nothing.
type looker struct {
	mu    sync.Mutex
	heard map[netip.Addr]int // by who asked
	odd   []string           // queries for other versions
}

func startLooker(t *testing.T, host *testnet.Host, erts string) *looker {
	t.Helper()
	conn, err := host.Namespace.ListenUDP(fmt.Sprintf("0.0.0.0:%d", testutil.DiscoveryPort))
	if err != nil {
		t.Fatal(err)
	}
	l := &looker{heard: map[netip.Addr]int{}}
	done := make(chan struct{})
	go func() {
		defer close(done)
		l.read(conn, erts)
	}()
	t.Cleanup(func() { _ = conn.Close(); <-done })
	return l
}

func (l *looker) read(conn *net.UDPConn, erts string) {
	datagram := make([]byte, 100)
	for {
		n, from, err := conn.ReadFromUDPAddrPort(datagram)
		if err != nil {
			return
		}
		l.mu.Lock()
		l.heard[from.Addr().Unmap()]++
		if query := string(datagram[:n]); query != "EBOOTQ"+erts {
			l.odd = append(l.odd, query)
		}
		l.mu.Unlock()
	}
}

// looks waits until each of the addresses has asked n times more.
func (l *looker) looks(t *testing.T, n int, period time.Duration, addresses ...string) {
	t.Helper()
	l.mu.Lock()
	before := maps.Clone(l.heard)
	l.mu.Unlock()
	testutil.Poll(t, time.Duration(n+2)*period, fmt.Sprintf("servers %v are to look for strangers %d times", addresses, n), func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return !slices.ContainsFunc(addresses, func(a string) bool {
			address := netip.MustParseAddr(a)
			return l.heard[address] < before[address]+n
		})
	})
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.odd) > 0 {
		t.Errorf("asked for other versions than are served: %q", l.odd)
	}
}

// warned returns the warnings of a server about strangers.
func (s *clusterServer) warned(t testing.TB) []string {
	t.Helper()
	status, ok := s.status()
	if !ok {
		t.Fatalf("%s does not answer", s.Name)
	}
	return slices.DeleteFunc(status.Warnings, func(w string) bool { return !strings.Contains(w, "no server of this cluster") })
}

// unalarmed wants that no server has ever given an alarm, and that none took the looks of the
// others for slaves.
func (c *serverCluster) unalarmed(t *testing.T) {
	t.Helper()
	for _, s := range c.servers {
		if w := s.warned(t); len(w) > 0 {
			t.Errorf("%s warns of %q, and there is no stranger", s.Name, w)
		}
		if n := metric(t, s, "eboot_rogue_responders"); n != 0 {
			t.Errorf("%s counts %v strangers, and there are none", s.Name, n)
		}
		for _, text := range []string{alarmText, "discovery not answered", "cannot be asked"} {
			if strings.Contains(s.Output(), text) {
				t.Errorf("%s logs %q:\n%s", s.Name, text, s.Output())
			}
		}
		slaves, err := s.Client.Slaves(t.Context())
		if err != nil || slices.ContainsFunc(slaves, func(r eboot.SlaveStatus) bool { return r.Slave.IsValid() }) {
			t.Errorf("%s takes the servers for slaves: %+v, %v", s.Name, slaves, err)
		}
		events, err := s.Client.Events(t.Context())
		if err != nil || slices.ContainsFunc(events, func(e eboot.Event) bool { return e.Index == 0 }) {
			t.Errorf("%s has observed something: %+v, %v", s.Name, events, err)
		}
	}
}

// TestAcceptanceRogue is T34: OTP's own boot server, on a host of the slaves' network, answers with
// priority 0 and is no server of the cluster. Every server notices within boot.watch, and that it is
// gone; none takes another server for a stranger, whatever happens to it.
func TestAcceptanceRogue(t *testing.T) {
	t.Parallel()
	erl := testutil.RequireErl(t)
	watch := 10 * time.Second
	if trials(2) == 2 {
		watch = 30 * time.Second
	}
	type variant struct {
		name    string
		allowed string
		setting string
	}
	variants := []variant{
		// Servers that ask from their second network are answered, from addresses that only gossip
		// tells of; in the first one they are no slaves, and nobody makes a fuss of it.
		{"each on all addresses", "10.84.0.0/24", "EBOOT_BOOT_BIND=0.0.0.0"},
		{"each on its address", "10.99.0.0/16", "EBOOT_PUBLISH_WAIT=30s"},
	}
	for _, tc := range variants[:trials(len(variants))] {
		t.Run(tc.name, func(t *testing.T) {
			network := testnet.New(t, 5)
			stranger, ear := network.Host(3), network.Host(4)
			c := newCluster(t, 3, clusterOptions{Network: network, Settings: []string{"EBOOT_BOOT_WATCH=" + watch.String(), tc.setting}})
			hosts := map[string]*testnet.Host{}
			for i, s := range c.servers {
				host := network.Host(i)
				// A second network, which the others know of only if the server says so.
				host.Run("ip", "addr", "add", fmt.Sprintf("10.84.0.%d/24", i+1), "broadcast", "10.84.0.255", "dev", "eth0")
				hosts[s.Name] = host
				s.Start(t)
			}
			c.WaitFormed(t)
			c.Publish(t, erl, "otp", "1", smallTree(t, erl))
			c.Allow(t, tc.allowed)
			listening := startLooker(t, ear, erl.ERTS)
			listening.looks(t, 2, watch, c.Addresses()...)
			c.unalarmed(t)

			// A server comes back with another address.
			moved := c.Followers(t)[0]
			moved.Stop(t)
			moved.Move(t)
			moved.Start(t)
			c.WaitFormed(t)
			listening.looks(t, 2, watch, c.Addresses()...)
			c.unalarmed(t)

			rogue := testutil.StartBootServer(t, erl, testutil.BootServerOptions{Namespace: stranger.Namespace, Whitelist: c.Addresses()})
			began := time.Now() // it answers
			name := stranger.Address.String()
			var took []time.Duration
			for _, s := range c.servers {
				testutil.Poll(t, watch+5*time.Second, s.Name+" is to warn of "+name, func() bool {
					return slices.ContainsFunc(s.warned(t), func(w string) bool { return strings.Contains(w, name+" (TCP port ") })
				})
				took = append(took, time.Since(began).Round(time.Millisecond))
			}
			if slowest := slices.Max(took); trials(2) == 2 && slowest > watch {
				t.Errorf("the stranger was noticed after %v, want at most %v", slowest, watch)
			}
			t.Logf("with boot.watch %v the stranger was noticed by the servers after %v", watch, took)
			for _, s := range c.servers {
				s.Run(t, "cluster", "status").want(t, 0).says(t, "warning: "+name)
				s.until(t, 10*time.Second, []string{"rogue.found", name}, "events")
				if n := metric(t, s, "eboot_rogue_responders"); n != 1 {
					t.Errorf("%s counts %v strangers, want 1", s.Name, n)
				}
				events, err := s.Client.Events(t.Context())
				observers := map[string]int{}
				for _, e := range events {
					if e.Kind == eboot.EventRogueFound {
						observers[e.Server]++
					}
				}
				if err != nil || len(observers) != 3 || observers[s.ID(t)] != 1 {
					t.Errorf("%s knows that the stranger was seen by %v, %v; want once by each of three", s.Name, observers, err)
				}
			}

			rogue.Stop()
			ended := time.Now()
			for _, s := range c.servers {
				testutil.Poll(t, 4*watch, s.Name+" is to warn no longer", func() bool { return len(s.warned(t)) == 0 })
			}
			t.Logf("it was gone, and no longer warned of after %v", time.Since(ended).Round(time.Millisecond))
			for _, s := range c.servers {
				log := s.Output()
				if n := strings.Count(log, alarmText); n != 1 || !strings.Contains(log, "is gone: address="+name) {
					t.Errorf("%s logs %d alarms, want one, and one end:\n%s", s.Name, n, log)
				}
			}
		})
	}
}

// On loopback addresses servers send nothing: the tests and `eboot dev` disturb no network. Seen
// from the kernel, not from the code.
func TestLoopbackServersAskNobody(t *testing.T) {
	t.Parallel()
	erl := testutil.RequireErl(t)
	network := testnet.New(t, 2)
	host := network.Host(0)
	c := newCluster(t, 1, clusterOptions{Network: network, Settings: []string{"EBOOT_BOOT_WATCH=10s", "EBOOT_BOOT_BIND=127.0.0.1"}})
	s := c.servers[0]
	s.Expect = 1
	s.Start(t)
	c.WaitFormed(t)
	c.Publish(t, erl, "otp", "1", smallTree(t, erl))
	listening := startLooker(t, network.Host(1), erl.ERTS)
	// The control: the same host is heard when it does ask.
	probe, err := host.Namespace.ListenUDP(host.Address.String() + ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer probe.Close()
	began := time.Now()
	testutil.Poll(t, 30*time.Second, "two looks are to be over", func() bool { return time.Since(began) > 14*time.Second })
	listening.mu.Lock()
	if len(listening.heard) > 0 {
		t.Errorf("a server on 127.0.0.1 asked: %v", listening.heard)
	}
	listening.mu.Unlock()
	raw := netip.AddrPortFrom(netip.MustParseAddr(testnet.Broadcast), testutil.DiscoveryPort)
	testutil.Poll(t, 10*time.Second, "a query is to be heard", func() bool {
		if _, err := probe.WriteToUDPAddrPort([]byte("EBOOTQ"+erl.ERTS), raw); err != nil {
			t.Fatal(err)
		}
		listening.mu.Lock()
		defer listening.mu.Unlock()
		return listening.heard[host.Address] > 0
	})
}
