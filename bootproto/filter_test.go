package bootproto

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// datagramOf puts a UDP header before a payload, as a filter sees it.
func datagramOf(sourcePort uint16, payload []byte) []byte {
	d := make([]byte, udpHeader, udpHeader+len(payload))
	binary.BigEndian.PutUint16(d, sourcePort)
	binary.BigEndian.PutUint16(d[2:], Port)
	binary.BigEndian.PutUint16(d[4:], uint16(udpHeader+len(payload)))
	return append(d, payload...)
}

func filterVM(t testing.TB) *bpf.VM {
	t.Helper()
	vm, err := bpf.NewVM(queryFilter())
	if err != nil {
		t.Fatal(err)
	}
	return vm
}

// passes runs the filter on a datagram. What it keeps must be all of it.
func passes(t testing.TB, vm *bpf.VM, sourcePort uint16, payload []byte) bool {
	t.Helper()
	d := datagramOf(sourcePort, payload)
	kept, err := vm.Run(d)
	if err != nil {
		t.Fatalf("%q: %v", payload, err)
	}
	if kept != 0 && kept < len(d) {
		t.Fatalf("%q is cut to %d of %d bytes", payload, kept, len(d))
	}
	return kept > 0
}

func TestQueryFilter(t *testing.T) {
	vm := filterVM(t)
	for payload, want := range map[string]bool{
		"EBOOTQ13.1.5":                     true,
		"EBOOTQ9":                          true,
		"EBOOTQ5.10.4~dfsg+1_x":            true,
		"EBOOTQ" + strings.Repeat("1", 32): true,
		"EBOOTQ13 1":                       true, // parseQuery refuses it
		"EBOOTQ\x00":                       true,
		"EBOOTQ" + strings.Repeat("1", 33): false,
		"EBOOTQ":                           false,
		"EBOOTR\x00\x11\x1013.1.5":         false,
		"ebootq13.1.5":                     false,
		"XBOOTQ13.1.5":                     false,
		"EBOOTq13.1.5":                     false,
		" EBOOTQ13.1.5":                    false,
		"":                                 false,
		strings.Repeat("x", 1400):          false,
	} {
		if got := passes(t, vm, 40000, []byte(payload)); got != want {
			t.Errorf("%q: %v, want %v", payload, got, want)
		}
		if passes(t, vm, 0, []byte(payload)) {
			t.Errorf("%q from port 0 is let through", payload)
		}
	}
	for _, short := range [][]byte{nil, {1}, datagramOf(1, nil)[:5]} {
		if kept, err := vm.Run(short); err != nil || kept != 0 {
			t.Errorf("% x: %d, %v", short, kept, err)
		}
	}
	// Requests, and requests with a byte or two of something else.
	random := rand.New(rand.NewPCG(4368, 1))
	alphabet := []byte("0123456789.-_+~azAZ")
	accepted := 0
	for range 200_000 {
		payload := []byte(queryPrefix)
		for range random.IntN(maxVersion + 3) {
			payload = append(payload, alphabet[random.IntN(len(alphabet))])
		}
		for range random.IntN(3) {
			payload[random.IntN(len(payload))] = byte(random.Uint32())
		}
		port := uint16(1 + random.IntN(65535))
		_, ok := parseQuery(payload)
		if ok && !passes(t, vm, port, payload) {
			t.Fatalf("%q from port %d is dropped, and it is a request", payload, port)
		}
		if ok {
			accepted++
		}
	}
	if accepted < 50_000 {
		t.Errorf("%d of the random datagrams are requests: too few to show anything", accepted)
	}
}

// FuzzQueryFilter: what parseQuery accepts passes the filter. The filter may let more
// through, but nothing that does not begin as a request does.
func FuzzQueryFilter(f *testing.F) {
	for _, seed := range []string{"EBOOTQ13.1.5", "EBOOTQ", "EBOOTQ\x00", "EBOOTR\x00\x11\x1013.1.5", "EBOOTQ" + strings.Repeat("9", 33)} {
		f.Add(uint16(40000), []byte(seed))
		f.Add(uint16(0), []byte(seed))
	}
	vm := filterVM(f)
	f.Fuzz(func(t *testing.T, port uint16, payload []byte) {
		if len(payload) > 65507 { // no datagram is longer
			return
		}
		_, ok := parseQuery(payload)
		ok = ok && port != 0
		switch passed := passes(t, vm, port, payload); {
		case ok && !passed:
			t.Fatalf("%q from port %d is dropped", payload, port)
		case passed && (port == 0 || len(payload) > maxQuery || !strings.HasPrefix(string(payload), queryPrefix)):
			t.Fatalf("%q from port %d is let through", payload, port)
		}
	})
}

// TestNoAnswerToPortZero sends a request that has no port to answer to, as only a raw
// socket can: the kernel drops it.
func TestNoAnswerToPortZero(t *testing.T) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_UDP)
	if err != nil {
		t.Skipf("needs root: %v", err)
	}
	defer unix.Close(fd) //nolint:errcheck // nothing was written to a disk
	d, port := startDiscovery(t, "127.0.0.1", DiscoveryOptions{Answerer: answererFunc(alone)})
	datagram := datagramOf(0, []byte("EBOOTQ13.1.5"))
	binary.BigEndian.PutUint16(datagram[2:], port)
	if err := unix.Sendto(fd, datagram, 0, &unix.SockaddrInet4{Addr: loopback.As4()}); err != nil {
		t.Fatal(err)
	}
	conn := searcher(t)
	sendQuery(t, conn, "127.0.0.1", port, "EBOOTQ13.1.5")
	receiveAnswer(t, conn)
	eventually(t, "one was dropped, one answered", func() bool {
		return d.Stats() == DiscoveryStats{Requests: 1, Answers: 1, Dropped: 1}
	})
}

// TestDiscoveryDoesNotAmplify counts bytes: an answer has three more than its request,
// which with the headers of both is less than 1.3 times as many, and what is no request
// or comes too often has no answer.
func TestDiscoveryDoesNotAmplify(t *testing.T) {
	const headers = 20 + udpHeader
	d, port := startDiscovery(t, "127.0.0.1", DiscoveryOptions{Answerer: answererFunc(alone), AnswersPerAddress: 1, AnswerBurst: 64})
	conn := searcher(t)
	in, out, answers := 0, 0, 0
	for length := 1; length <= maxVersion; length++ {
		request := queryPrefix + strings.Repeat("7", length)
		sendQuery(t, conn, "127.0.0.1", port, request)
		answer, _ := receiveAnswer(t, conn)
		if len(answer) != len(request)+3 {
			t.Errorf("an answer of %d bytes to a request of %d", len(answer), len(request))
		}
		in, out, answers = in+headers+len(request), out+headers+len(answer), answers+1
		if float64(headers+len(answer)) > 1.3*float64(headers+len(request)) {
			t.Errorf("%d bytes for %d", headers+len(answer), headers+len(request))
		}
	}
	junk := []string{"", "EBOOTQ", "EBOOTQ1 1", "EBOOTR\x00\x11\x1013.1.5", strings.Repeat("EBOOTQ", 200)}
	for range 100 {
		for _, datagram := range junk {
			sendQuery(t, conn, "127.0.0.1", port, datagram)
			in += headers + len(datagram)
		}
	}
	for range 1000 {
		sendQuery(t, conn, "127.0.0.1", port, "EBOOTQ13.1.5")
		in += headers + 12
	}
	eventually(t, "all are counted", func() bool { return d.Stats().Requests == uint64(maxVersion+1000) })
	buffer := make([]byte, 512)
	for {
		_ = conn.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		n, _, err := conn.ReadFromUDPAddrPort(buffer)
		if err != nil {
			break
		}
		out, answers = out+headers+n, answers+1
	}
	if answers < 64 || answers > 64+10 {
		t.Errorf("%d answers, the limit is 64 and one a second", answers)
	}
	if stats := d.Stats(); stats.Answers != uint64(answers) || stats.Limited != uint64(maxVersion+1000-answers) || stats.Malformed != 100 || stats.Dropped != 400 {
		t.Errorf("%d answers came: %+v", answers, stats)
	}
	if float64(out) > 1.3*float64(in) {
		t.Errorf("%d bytes out, %d in", out, in)
	}
	t.Logf("%d bytes in, %d out", in, out)
}

// TestFloodOfOneSource: who asks without end is refused before anything is asked for him, and
// takes nothing of what is for all.
func TestFloodOfOneSource(t *testing.T) {
	asked := 0
	d := NewDiscovery(DiscoveryOptions{Answerer: answererFunc(func(q Query) (Offer, error) {
		asked++
		return alone(q)
	}), Answers: 2000})
	conn := searcher(t)
	out := newOutbox(conn, func(error) {})
	attacker := netip.MustParseAddr("127.0.0.66")
	for i := range 100_000 {
		d.answer(out, netip.AddrPortFrom(attacker, uint16(1024+i%60_000)), netip.Addr{}, []byte("13.1.5"))
	}
	stats := d.Stats()
	if asked > 5*DefaultAnswerBurst || asked < DefaultAnswerBurst || stats.Limited != uint64(100_000-asked) {
		t.Errorf("asked %d times: %+v", asked, stats)
	}
	for i := range 200 {
		if _, ok := d.enter(time.Now(), netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 1, byte(i)}), 1), Offer{}); !ok {
			t.Fatalf("slave %d is not answered", i)
		}
		if !d.admit(time.Now(), netip.AddrFrom4([4]byte{10, 0, 1, byte(i)})) {
			t.Fatalf("slave %d is not admitted", i)
		}
	}
}
