package bootproto

import (
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"eboot/internal/testnet"
)

// TestForgedAddressesHoldNobodyUp: who forges addresses of slaves that are switched off has the kernel
// look for these hosts, and their answers wait in the buffer of the socket meanwhile. A slave that is
// there is answered at once all the same. The buffer is as large as an ordinary machine lets it be.
func TestForgedAddressesHoldNobodyUp(t *testing.T) {
	network := testnet.New(t, 2)
	server, slave := network.Host(0), network.Host(1)
	var conn, there *net.UDPConn
	err := server.Namespace.Do(func() (err error) {
		conn, err = listenDiscovery(server.Address, 0)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetWriteBuffer(208 << 10); err != nil {
		t.Fatal(err)
	}
	if there, err = slave.Namespace.ListenUDP(slave.Address.String() + ":0"); err != nil {
		t.Fatal(err)
	}
	defer there.Close()
	var failed atomic.Int64
	out := newOutbox(conn, func(err error) {
		if err != nil {
			failed.Add(1)
		}
	})
	put := func(to netip.AddrPort) {
		a := answer{to: to, source: server.Address}
		a.length = len(appendReply(a.bytes[:0], 0, Port, "13.1.5"))
		out.put(time.Now(), a)
	}
	const absent = 8
	slowest, heard, asked := time.Duration(0), 0, 0
	tick := time.NewTicker(5 * time.Millisecond) // 200 a second, as many as one address gets
	defer tick.Stop()
	for i := range 800 { // 4 s
		<-tick.C
		began := time.Now()
		for k := range absent {
			put(netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 83, 7, byte(100 + k)}), 4000))
		}
		slowest = max(slowest, time.Since(began))
		if i%200 != 199 {
			continue
		}
		asked++
		put(there.LocalAddr().(*net.UDPAddr).AddrPort())
		_ = there.SetReadDeadline(time.Now().Add(250 * time.Millisecond))
		if _, err := there.Read(make([]byte, 100)); err == nil {
			heard++
		}
	}
	t.Logf("the slowest turn took %v, %d answers were not sent, the slave heard %d of %d", slowest, failed.Load(), heard, asked)
	if slowest > 500*time.Millisecond {
		t.Errorf("answers to hosts that are not there held the others up for %v", slowest)
	}
	if heard != asked {
		t.Errorf("the slave heard %d of %d answers", heard, asked)
	}
	if failed.Load() == 0 {
		t.Error("every answer was sent: nothing is shown")
	}
}
