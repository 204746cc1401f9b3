package agent

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
)

func net4(text string, broadcast bool) network {
	return network{prefix: netip.MustParsePrefix(text), broadcast: broadcast}
}

func TestProbeTargets(t *testing.T) {
	all := []network{
		net4("10.1.2.3/24", true), net4("10.1.2.4/24", true), net4("192.168.7.200/26", true), net4("172.16.0.9/12", true),
		net4("10.9.9.1/32", false), net4("10.8.0.1/24", false),
	}
	first, second, third := "10.1.2.3>10.1.2.255", "192.168.7.200>192.168.7.255", "172.16.0.9>172.31.255.255"
	many := make([]network, 0, 40)
	for i := range 40 {
		many = append(many, net4(fmt.Sprintf("10.77.%d.1/24", i), true))
	}
	for _, tc := range []struct {
		name     string
		binds    []string
		networks []network
		want     []string
	}{
		{"AllOnceEach", []string{"0.0.0.0"}, all, []string{first, second, third}},
		{"One", []string{"192.168.7.200"}, all, []string{second}},
		{"TwoOfOneNetwork", []string{"10.1.2.4", "10.1.2.3"}, all, []string{first}},
		{"NoBroadcast", []string{"10.9.9.1", "10.8.0.1"}, all, nil},
		{"NotOfThisMachine", []string{"10.1.2.99"}, all, nil},
		{"Loopback", []string{"127.0.0.1", "127.0.3.7"}, all, nil},
		{"NoNetworks", []string{"0.0.0.0"}, nil, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var binds []netip.Addr
			for _, b := range tc.binds {
				binds = append(binds, netip.MustParseAddr(b))
			}
			var got []string
			for _, target := range probeTargets(binds, tc.networks) {
				got = append(got, target.From.String()+">"+target.To.String())
			}
			if !slices.Equal(got, tc.want) {
				t.Errorf("got %v, want %v", got, tc.want)
			}
		})
	}
	if n := len(probeTargets([]netip.Addr{netip.IPv4Unspecified()}, many)); n != maxProbed {
		t.Errorf("%d of 40 networks are asked, want %d", n, maxProbed)
	}
}

// The servers of these tests are on loopback addresses: whatever networks the machine has that
// runs them, nothing is sent there.
func TestLoopbackAddressesAskNobody(t *testing.T) {
	networks, err := localNetworks()
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range networks {
		if n.prefix.Addr().IsLoopback() {
			t.Errorf("%s is a network of slaves", n.prefix)
		}
	}
	binds := []netip.Addr{netip.MustParseAddr("127.0.0.1"), takeAddress(t)}
	if targets := probeTargets(binds, networks); len(targets) != 0 {
		t.Errorf("servers on %v ask %v", binds, targets)
	}
	if told := bootAddresses(binds); !slices.Equal(told, binds) {
		t.Errorf("servers on %v say that they answer on %v", binds, told)
	}
}
