package agent

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"eboot/fsm"
	"eboot/internal/testutil"
)

// aliveMessage is what memberlist gossips of a server, with the highest incarnation that there
// is: the server itself cannot contradict it any more.
func aliveMessage(t *testing.T, id string, at netip.AddrPort, peer string) []byte {
	t.Helper()
	parsed, err := uuid.Parse(id)
	if err != nil {
		t.Fatal(err)
	}
	meta := append([]byte{1, 1, 16}, parsed[:]...)
	meta = append(append(meta, 3, byte(len(peer))), peer...)
	meta = append(meta, 5, 1, wireVersion, 6, 1, 3, 7, 1, byte(fsm.Version), 8, 1, 0)
	message := []byte{4, 0x86} // alive: a map of six
	text := func(s string) { message = append(append(message, 0xa0|byte(len(s))), s...) }
	raw := func(b []byte) { message = append(append(message, 0xda, 0, byte(len(b))), b...) }
	text("Incarnation")
	message = append(message, 0xce, 0xff, 0xff, 0xff, 0xff)
	text("Node")
	raw([]byte(id))
	text("Addr")
	raw(at.Addr().AsSlice())
	text("Port")
	message = binary.BigEndian.AppendUint16(append(message, 0xcd), at.Port())
	text("Meta")
	raw(meta)
	text("Vsn")
	raw([]byte{1, 5, 2, 2, 5, 4})
	return message
}

// tellGossip sends one message to the gossip port of a server, as one that has the key.
func tellGossip(t *testing.T, to netip.AddrPort, key byte, message []byte) {
	t.Helper()
	block, err := aes.NewCipher(bytes.Repeat([]byte{key}, 32))
	if err != nil {
		t.Fatal(err)
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		t.Fatal(err)
	}
	label := "eboot/test"
	nonce := make([]byte, gcm.NonceSize())
	_, _ = rand.Read(nonce) // it never fails
	packet := append([]byte{244, byte(len(label))}, label...)
	packet = append(append(packet, 1), nonce...)
	packet = gcm.Seal(packet, nonce, message, []byte(label))
	conn, err := net.Dial("udp", to.String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write(packet); err != nil {
		t.Fatal(err)
	}
}

// relay passes everything on to an address, as somebody on the way does.
func relay(t *testing.T, to string) (address string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var open sync.WaitGroup
	t.Cleanup(func() { _ = ln.Close(); open.Wait() })
	open.Go(func() {
		for {
			in, err := ln.Accept()
			if err != nil {
				return
			}
			open.Go(func() {
				defer in.Close()
				out, err := net.Dial("tcp", to)
				if err != nil {
					return
				}
				defer out.Close()
				open.Go(func() { _, _ = io.Copy(out, in); out.Close() })
				_, _ = io.Copy(in, out)
			})
		}
	})
	return ln.Addr().String()
}

// Who has the key of gossip and no certificate says of every server that it is elsewhere: at
// a port where nobody is, and at one that passes everything on to the right server. The servers
// reach each other all the same, and the cluster's own list of addresses stays as it was.
func TestGossipLies(t *testing.T) {
	t.Parallel()
	configs := secureServers(t, newTestAuthority(t, "test"), 3, keyText(1))[:3]
	servers := []*server{start(t, configs[0]), start(t, configs[1]), start(t, configs[2])}
	for _, s := range servers {
		testutil.Poll(t, 60*time.Second, "the server is to be a member and to know a leader", func() bool {
			return s.machine.State().Cluster() != "" && s.cluster.Standing() == nil && len(s.cluster.Status().Servers) == 3
		})
	}
	leader, followers := leading(t, servers)
	before := leader.cluster.Status().Servers
	gossipOf := func(s *server) netip.AddrPort { return configs[slices.Index(servers, s)].Gossip.Bind }
	peerOf := func(s *server) string { return configs[slices.Index(servers, s)].Peer.Bind.String() }

	nowhere := "127.0.0.1:9"
	through := relay(t, peerOf(followers[0]))
	lies := map[*server]string{leader: nowhere, followers[0]: through, followers[1]: nowhere}
	for _, to := range servers {
		for of, where := range lies {
			if of == to {
				continue
			}
			testutil.Poll(t, 20*time.Second, "gossip is to believe it", func() bool {
				tellGossip(t, gossipOf(to), 1, aliveMessage(t, of.server, gossipOf(of), where))
				m, ok := to.peers.heard(of.server)
				return ok && m.Peer == where
			})
		}
	}
	for range 4 { // looks of a leader at who is where
		leader.allow(t, "10.0.0.0/24", "stable")
		if now := leader.cluster.Status().Servers; !slices.Equal(now, before) {
			t.Fatalf("gossip has moved a member: %+v, before %+v", now, before)
		}
		select {
		case <-time.After(standingEvery):
		case <-t.Context().Done():
		}
	}

	// Connections that are made anew find the way, too.
	i := slices.Index(servers, followers[1])
	followers[1].stop(t)
	servers[i] = start(t, configs[i])
	back := servers[i]
	testutil.Poll(t, 60*time.Second, "the server that is back is to follow the leader", func() bool {
		return back.cluster.Status().Leader != "" && back.machine.State().Index() == leader.machine.State().Index()
	})
	followers[0].stop(t)
	testutil.Poll(t, 60*time.Second, "two servers that gossip lies about are to go on", func() bool {
		_, err := back.client.Status(t.Context())
		return err == nil && back.Fresh(t.Context()) == nil
	})
	if now := leader.cluster.Status().Servers; !slices.Equal(now, before) {
		t.Errorf("gossip has moved a member: %+v, before %+v", now, before)
	}
}
