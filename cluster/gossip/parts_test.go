package gossip

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/memberlist"

	"eboot"
)

// worst is the longest Meta that can be told.
func worst() Meta {
	m := Meta{
		ID: strings.Repeat("i", maxID), Peer: strings.Repeat("p", maxPeer-6) + ":65535", Version: strings.Repeat("v", maxVersion),
		Wire: math.MaxInt32, Expect: math.MaxInt32, StateVersion: math.MaxInt32, Draining: true,
	}
	for i := range byte(maxBoot) {
		m.Boot = append(m.Boot, netip.AddrFrom4([4]byte{255, 255, 255, i}))
	}
	return m
}

func TestMetaSize(t *testing.T) {
	b, err := encodeMeta(worst(), true)
	if err != nil || len(b) >= memberlist.MetaMaxSize {
		t.Errorf("the longest: %d bytes, %v, want less than %d", len(b), err, memberlist.MetaMaxSize)
	}
	t.Logf("the longest is %d bytes", len(b))
	usual := Meta{ID: "7d44fb5c-9f0a-4f0e-8f5f-6d2f1d0a7c11", Peer: "10.0.0.1:4381", Version: "0.2.0", Wire: 1, Expect: 3, StateVersion: 1, Boot: []netip.Addr{netip.MustParseAddr("10.0.0.1")}}
	if b, err = encodeMeta(usual, false); err != nil || len(b) > 64 {
		t.Errorf("a usual one: %d bytes, %v", len(b), err)
	}
	m, leaving, err := decodeMeta(b)
	if err != nil || leaving || !equalMeta(m, usual) {
		t.Errorf("decoded %+v, %v, %v", m, leaving, err)
	}
}

func TestMetaIsCutToSize(t *testing.T) {
	m := worst()
	m.Version += "more"
	m.Boot = append([]netip.Addr{netip.IPv6Loopback(), netip.MustParseAddr("::ffff:10.0.0.1")}, m.Boot...)
	b, err := encodeMeta(m, false)
	if err != nil {
		t.Fatal(err)
	}
	got, _, err := decodeMeta(b)
	if err != nil || len(got.Version) != maxVersion || len(got.Boot) != maxBoot || got.Boot[0] != netip.MustParseAddr("10.0.0.1") {
		t.Errorf("got %+v, %v", got, err)
	}
}

func TestMetaErrors(t *testing.T) {
	for name, change := range map[string]func(*Meta){
		"NoID":        func(m *Meta) { m.ID = "" },
		"LongID":      func(m *Meta) { m.ID += "i" },
		"Unprintable": func(m *Meta) { m.ID = "a\nb" },
		"LongPeer":    func(m *Meta) { m.Peer = "p" + m.Peer },
		"NoPort":      func(m *Meta) { m.Peer = "host" },
		"PortZero":    func(m *Meta) { m.Peer = "host:0" },
		"NoHost":      func(m *Meta) { m.Peer = ":1" },
		"Version":     func(m *Meta) { m.Version = "\x1b[31m" },
		"Negative":    func(m *Meta) { m.Wire = -1 },
		"TooHigh":     func(m *Meta) { m.Expect = math.MaxInt32 + 1 },
	} {
		m := worst()
		change(&m)
		if _, err := encodeMeta(m, false); !errors.Is(err, eboot.ErrInvalid) && !errors.Is(err, eboot.ErrTooLarge) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A later version may add fields.
func TestMetaUnknownFields(t *testing.T) {
	b, err := encodeMeta(worst(), false)
	if err != nil {
		t.Fatal(err)
	}
	m, _, err := decodeMeta(append(b, 200, 3, 1, 2, 3))
	if err != nil || !equalMeta(m, worst()) {
		t.Errorf("%+v, %v", m, err)
	}
}

func FuzzNodeMeta(f *testing.F) {
	for _, m := range []Meta{worst(), {ID: "7d44fb5c-9f0a-4f0e-8f5f-6d2f1d0a7c11", Peer: "[::1]:4381", Wire: 1}} {
		b, err := encodeMeta(m, true)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte{metaFormat, tagID, 1, 'a', tagPeer, 3, 'b', ':', '1', tagFlags, 0, tagBoot, 3, 1, 2, 3})
	f.Add([]byte{metaFormat, tagUUID, 255})
	f.Fuzz(func(t *testing.T, b []byte) {
		m, leaving, err := decodeMeta(b)
		if err != nil {
			if !errors.Is(err, eboot.ErrInvalid) && !errors.Is(err, eboot.ErrTooLarge) {
				t.Fatalf("error of another kind: %v", err)
			}
			return
		}
		encoded, err := encodeMeta(m, leaving)
		if err != nil || len(encoded) >= memberlist.MetaMaxSize {
			t.Fatalf("%+v was decoded and is %d bytes encoded: %v", m, len(encoded), err)
		}
		again, leavingAgain, err := decodeMeta(encoded)
		m.Version = m.Version[:min(len(m.Version), maxVersion)]
		m.Boot = m.Boot[:min(len(m.Boot), maxBoot)]
		if err != nil || leaving != leavingAgain || !equalMeta(again, m) {
			t.Fatalf("%+v came back as %+v, %v", m, again, err)
		}
	})
}

func FuzzPeersFile(f *testing.F) {
	b, err := encodePeers([]peer{{"a", netip.MustParseAddrPort("10.0.0.1:4382")}, {"b", netip.MustParseAddrPort("[2001:db8::1]:1")}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(`{"version":1,"peers":[{"id":"a","address":"[fe80::1%eth0]:1"}]}`))
	f.Add([]byte(`{"version":2}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		peers, err := decodePeers(b)
		if err != nil {
			if !errors.Is(err, eboot.ErrInvalid) {
				t.Fatalf("error of another kind: %v", err)
			}
			return
		}
		encoded, err := encodePeers(peers)
		if err != nil {
			t.Fatal(err)
		}
		again, err := decodePeers(encoded)
		if err != nil || fmt.Sprint(again) != fmt.Sprint(peers) {
			t.Fatalf("%v came back as %v, %v", peers, again, err)
		}
	})
}

func testNode(id string, i int) *memberlist.Node {
	meta, err := encodeMeta(Meta{ID: id, Peer: "h:1", Wire: 1}, false)
	if err != nil {
		panic(err)
	}
	return &memberlist.Node{Name: id, Addr: net.IPv4(10, 0, byte(i>>8), byte(i)), Port: 4382, Meta: meta}
}

func TestMembersAreBounded(t *testing.T) {
	m := newMembers(Meta{ID: "self", Wire: 1}, hclog.NewNullLogger())
	for i := range maxAlive {
		n := testNode(fmt.Sprint("server-", i), i)
		if err := m.acceptable(n); err != nil {
			t.Fatal(err)
		}
		m.alive(n)
	}
	if err := m.acceptable(testNode("one-more", 999)); !errors.Is(err, eboot.ErrTooLarge) {
		t.Errorf("one more: %v", err)
	}
	if err := m.acceptable(testNode("server-3", 3)); err != nil {
		t.Errorf("one of them: %v", err)
	}
	for i := range 1000 {
		n := testNode(fmt.Sprint("short-lived-", i), i)
		m.alive(n)
		m.dead(n)
	}
	if n := len(m.all()); n != maxAlive+maxLost {
		t.Errorf("%d are remembered", n)
	}
	m.mu.Lock()
	m.expire(time.Now().Add(forget))
	m.mu.Unlock()
	if n := len(m.all()); n != maxAlive {
		t.Errorf("%d are remembered after a day", n)
	}
}

func TestAcceptable(t *testing.T) {
	m := newMembers(Meta{ID: "self", Wire: 1}, hclog.NewNullLogger())
	liar := testNode("a", 1)
	liar.Name = "b"
	nowhere := testNode("a", 1)
	nowhere.Port = 0
	garbage := testNode("a", 1)
	garbage.Meta = []byte("serf")
	for name, n := range map[string]*memberlist.Node{"liar": liar, "nowhere": nowhere, "garbage": garbage} {
		if err := m.acceptable(n); !errors.Is(err, eboot.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestLogLimit(t *testing.T) {
	var out bytes.Buffer
	l := &lineLimit{next: &out, kinds: map[string]*lineKind{}}
	now := time.Unix(0, 0)
	var logged []string
	for i := range 1000 {
		if line, ok := l.limit(fmt.Sprintf("[ERR] memberlist: Decrypt packet failed: no installed keys from=10.0.0.%d:1\n", i), now); ok {
			logged = append(logged, line)
		}
	}
	if line, ok := l.limit("[WARN] memberlist: something else\n", now); !ok || line != "[WARN] memberlist: something else\n" {
		t.Errorf("another kind: %q, %v", line, ok)
	}
	if line, ok := l.limit("[ERR] memberlist: Decrypt packet failed: no installed keys from=10.9.9.9:1\n", now.Add(linePause)); ok {
		logged = append(logged, line)
	}
	if len(logged) != 2 || !strings.HasSuffix(logged[1], "from=10.9.9.9:1 (and 999 more like this)\n") {
		t.Errorf("logged %q", logged)
	}
	for i := range 10_000 {
		l.limit(strings.Repeat("x", i+1), now.Add(linePause))
	}
	if len(l.kinds) > maxLineKinds {
		t.Errorf("%d kinds are remembered", len(l.kinds))
	}
	for range 3 {
		if _, err := io.WriteString(l, "[DEBUG] memberlist: ping\n"); err != nil {
			t.Fatal(err)
		}
	}
	if n := strings.Count(out.String(), "ping"); n != 3 {
		t.Errorf("%d debug lines of 3", n)
	}
}

// Who opens connections and says nothing does not keep servers out.
func TestStreamsAreBounded(t *testing.T) {
	a := start(t, "a", "127.0.0.1:0")
	var idle []net.Conn
	defer func() {
		for _, conn := range idle {
			_ = conn.Close()
		}
	}()
	from := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 66)}}
	for range 3 * maxStreamsPerAddress {
		conn, err := from.Dial("tcp", a.Address().String())
		if err != nil {
			t.Fatal(err)
		}
		idle = append(idle, conn)
	}
	flooder := netip.MustParseAddr("127.0.0.66")
	poll(t, "as many as one address may have", func() bool {
		a.transport.mu.Lock()
		defer a.transport.mu.Unlock()
		if n := a.transport.byAddress[flooder]; n > maxStreamsPerAddress {
			t.Fatalf("%d connections of one address", n)
		}
		return a.transport.byAddress[flooder] == maxStreamsPerAddress
	})
	b := start(t, "b", "127.0.0.2:0", seeds(a))
	b.seesAlive(t, "a")
	a.seesAlive(t, "b")
	a.stop() // ends with the others still open
	a.transport.mu.Lock()
	defer a.transport.mu.Unlock()
	if len(a.transport.open) != 0 || len(a.transport.joins) != 0 {
		t.Errorf("%d connections are open after Close", len(a.transport.open))
	}
}

// Run ends at once although a join waits for somebody who does not answer.
func TestRunEndsWithSlowJoin(t *testing.T) {
	silent, err := net.Listen("tcp", "127.0.0.1:0") // the kernel accepts, nobody reads
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	a := start(t, "a", "127.0.0.1:0", func(o *Options) { o.Local = false; o.Seeds = []string{silent.Addr().String()} })
	poll(t, "the join", func() bool {
		a.transport.mu.Lock()
		defer a.transport.mu.Unlock()
		j := a.transport.joins[silent.Addr().String()]
		return j != nil && j.reached
	})
	begin := time.Now()
	a.stop()
	if d := time.Since(begin); d > 2*time.Second {
		t.Errorf("it took %v", d)
	}
}
