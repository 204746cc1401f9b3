package testnet

import (
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"
)

// faults is what is wrong with the packets that arrive at a host.
type faults struct {
	cut       []*Host  // nothing of these arrives
	loss      int      // percent of everything that is lost
	refuseAll bool     // new TCP connections to any port are refused
	refused   []uint16 // and to these
}

// Cut stops all packets between a and b, both ways.
func (n *Network) Cut(a, b *Host) {
	n.t.Helper()
	b.cutFrom(a)
	a.cutFrom(b)
	n.apply(a, b)
}

// CutOneWay stops the packets from one host to another; those of the other way arrive.
func (n *Network) CutOneWay(from, to *Host) {
	n.t.Helper()
	to.cutFrom(from)
	n.apply(to)
}

// Isolate cuts the hosts given from all others. Among each other they stay connected.
func (n *Network) Isolate(hosts ...*Host) {
	n.t.Helper()
	for _, a := range hosts {
		for _, b := range n.hosts {
			if !slices.Contains(hosts, b) {
				a.cutFrom(b)
				b.cutFrom(a)
			}
		}
	}
	n.applyFaults()
}

// Lose drops that share of the packets that arrive at the hosts given, at random; of all
// hosts when none is given. What passes two such hosts is lost at the one where it arrives, so a
// request and its reply are both lost with this probability.
func (n *Network) Lose(percent int, hosts ...*Host) {
	n.t.Helper()
	if percent < 0 || percent > 100 {
		n.t.Fatalf("loss of %d percent", percent)
	}
	if len(hosts) == 0 {
		hosts = n.hosts
	}
	for _, h := range hosts {
		h.faults.loss = percent
	}
	n.apply(hosts...)
}

// Reject refuses new TCP connections from other hosts to the ports given of h, with a
// reset, as when nobody listens; to every port when none is given. Connections that are open go
// on, and so does UDP.
func (n *Network) Reject(h *Host, ports ...uint16) {
	n.t.Helper()
	if len(ports) == 0 {
		h.faults.refuseAll = true
	}
	h.faults.refused = append(h.faults.refused, ports...)
	n.apply(h)
}

// Heal takes away everything that Cut, CutOneWay, Isolate, Lose and Reject have done,
// from the hosts given; from all when none is given. A cut between two hosts is healed with either of them.
func (n *Network) Heal(hosts ...*Host) {
	n.t.Helper()
	if len(hosts) == 0 {
		hosts = n.hosts
	}
	for _, h := range n.hosts {
		if slices.Contains(hosts, h) {
			h.faults = faults{}
			continue
		}
		h.faults.cut = slices.DeleteFunc(h.faults.cut, func(from *Host) bool { return slices.Contains(hosts, from) })
	}
	n.applyFaults()
}

func (h *Host) cutFrom(other *Host) {
	if h != other && !slices.Contains(h.faults.cut, other) {
		h.faults.cut = append(h.faults.cut, other)
	}
}

func (n *Network) applyFaults() {
	n.t.Helper()
	n.apply(n.hosts...)
}

// apply writes the tables of the hosts anew, all at the same time: a transaction waits
// some 20 ms for the kernel to let go of the old table.
func (n *Network) apply(hosts ...*Host) {
	n.t.Helper()
	var group errgroup.Group
	for _, h := range hosts {
		group.Go(func() error {
			_, err := run(h.Namespace, h.faults.ruleset(), "nft", "-f", "-")
			return err
		})
	}
	n.must(group.Wait())
}

// ruleset is one transaction of nft(8): the table as it is goes, whether there is one or
// not, and the new one comes. It stands before connection tracking, so that open connections are hit too.
func (f *faults) ruleset() string {
	lines := []string{"table inet testnet", "delete table inet testnet", "table inet testnet {", "chain input {",
		"type filter hook input priority raw; policy accept;", `iifname "lo" accept`}
	for _, from := range f.cut {
		lines = append(lines, fmt.Sprintf("ip saddr %s drop", from.Address))
	}
	switch {
	case f.loss == 100: // nft takes no comparison that is always true
		lines = append(lines, "drop")
	case f.loss > 0:
		lines = append(lines, fmt.Sprintf("numgen random mod 100 < %d drop", f.loss))
	}
	const refuse = "tcp flags & (syn | ack) == syn reject with tcp reset"
	for _, port := range f.refused {
		lines = append(lines, fmt.Sprintf("tcp dport %d %s", port, refuse))
	}
	if f.refuseAll {
		lines = append(lines, refuse)
	}
	return strings.Join(append(lines, "}", "}"), "\n") + "\n"
}
