package testnet

import (
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"eboot/internal/testutil"
)

// MaxHosts is how many hosts a network can have: their addresses end in 1 to 200, and
// those above are what ChangeAddress gives out.
const MaxHosts = 200

// prefix is that of every network. Private, so that programs which look for a private
// address of their host find it.
var prefix = netip.MustParsePrefix("10.83.7.0/24")

// Broadcast is the broadcast address of every network.
const Broadcast = "10.83.7.255"

// Network is some hosts that reach each other.
type Network struct {
	t     testing.TB
	hosts []*Host
	last  netip.Addr // the latest address that was given to a host
}

// Host is one host of a network.
type Host struct {
	Name      string // "h1", "h2", …
	Address   netip.Addr
	Namespace *testutil.Namespace

	t       testing.TB
	network *Network
	faults  faults
}

// New builds a network of n hosts, which lives as long as the test. Host i has the
// address 10.83.7.(i+1). A machine where that is not possible skips the test
// (testutil.RequireNetwork).
func New(t testing.TB, n int) *Network {
	t.Helper()
	testutil.RequireNetwork(t)
	if n < 1 || n > MaxHosts {
		t.Fatalf("network of %d hosts, want 1 to %d", n, MaxHosts)
	}
	network := &Network{t: t, last: prefix.Addr()}
	for i := range n {
		network.last = network.last.Next()
		network.hosts = append(network.hosts, &Host{
			Name: fmt.Sprintf("h%d", i+1), Address: network.last, Namespace: testutil.NewNamespace(t), t: t, network: network,
		})
	}
	// The bridge forwards at once: no spanning tree, no learning of multicast groups.
	lines := []string{"link add name switch type bridge stp_state 0 mcast_snooping 0", "link set switch up"}
	for i, h := range network.hosts {
		port := fmt.Sprintf("port%d", i+1)
		lines = append(lines,
			fmt.Sprintf("link add name %s type veth peer name eth0 netns %s", port, h.Namespace.Path()),
			fmt.Sprintf("link set %s master switch up", port))
	}
	network.must(ip(testutil.NewNamespace(t), lines...))
	for _, h := range network.hosts {
		network.must(ip(h.Namespace, h.addAddress(h.Address), "link set eth0 up"))
	}
	return network
}

// Host returns the host with number i, from 0.
func (n *Network) Host(i int) *Host { return n.hosts[i] }

// Hosts returns all of them.
func (n *Network) Hosts() []*Host { return append([]*Host(nil), n.hosts...) }

// Lookup returns the host that has the address now, or nil.
func (n *Network) Lookup(address netip.Addr) *Host {
	for _, h := range n.hosts {
		if h.Address == address {
			return h
		}
	}
	return nil
}

// ChangeAddress gives the host an address that no host of this network has had, and
// takes the old one away: connections from and to it hang, as those of a machine that got another
// lease. Faults between hosts stay.
func (h *Host) ChangeAddress() {
	h.t.Helper()
	next := h.network.last.Next()
	if !prefix.Contains(next) || next.String() == Broadcast {
		h.t.Fatal("network has no further addresses")
	}
	old := h.Address
	h.network.last, h.Address = next, next
	h.network.must(ip(h.Namespace, fmt.Sprintf("addr del %s/%d dev eth0", old, prefix.Bits()), h.addAddress(next)))
	h.network.applyFaults()
}

func (h *Host) addAddress(a netip.Addr) string {
	return fmt.Sprintf("addr add %s/%d broadcast %s dev eth0", a, prefix.Bits(), Broadcast)
}

// Run runs a program on the host to its end and returns what it printed. A program that
// fails fails the test.
func (h *Host) Run(program string, args ...string) string {
	h.t.Helper()
	out, err := run(h.Namespace, "", program, args...)
	h.network.must(err)
	return out
}

func (n *Network) must(err error) {
	n.t.Helper()
	if err != nil {
		n.t.Fatalf("test network: %v", err)
	}
}

// ip runs commands of ip-link(8) and ip-address(8) in one batch.
func ip(ns *testutil.Namespace, lines ...string) error {
	_, err := run(ns, strings.Join(lines, "\n")+"\n", "ip", "-batch", "-")
	return err
}

func run(ns *testutil.Namespace, input, program string, args ...string) (string, error) {
	cmd := exec.Command(program, args...)
	cmd.Stdin = strings.NewReader(input)
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	ended, err := testutil.Spawn(cmd, ns)
	if err == nil {
		err = <-ended
	}
	if err != nil {
		return "", fmt.Errorf("%s %s: %w: %s%s", program, strings.Join(args, " "), err, input, out.String())
	}
	return out.String(), nil
}
