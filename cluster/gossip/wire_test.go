package gossip

import (
	"bytes"
	"compress/lzw"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"net"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-msgpack/v2/codec"
	"github.com/hashicorp/memberlist"

	"eboot"
)

// header is memberlist's pushPullHeader.
type header struct {
	Nodes        int
	UserStateLen int
	Join         bool
}

// encode is a message as memberlist encodes it.
func encode(t testing.TB, kind byte, values ...any) []byte {
	t.Helper()
	out := bytes.NewBuffer([]byte{kind})
	enc := codec.NewEncoder(out, &codec.MsgpackHandle{})
	for _, value := range values {
		if err := enc.Encode(value); err != nil {
			t.Fatal(err)
		}
	}
	return out.Bytes()
}

// bomb is a message of so many bytes, compressed as memberlist does.
func bomb(t testing.TB, size int) []byte {
	t.Helper()
	var packed bytes.Buffer
	w := lzw.NewWriter(&packed, lzw.LSB, 8)
	if _, err := w.Write(make([]byte, size)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return encode(t, 9, struct {
		Algo uint8
		Buf  []byte
	}{0, packed.Bytes()})
}

func labelled(message []byte) []byte {
	label := "eboot/prod"
	return slices.Concat([]byte{labelMessage, byte(len(label))}, []byte(label), message)
}

type pushNode struct {
	Name      string
	Addr      []byte
	Port      uint16
	Meta, Vsn []byte
	State     int
}

func TestReadMessage(t *testing.T) {
	node := pushNode{Name: "a", Addr: []byte{10, 0, 0, 1}, Port: 4382, Meta: make([]byte, 500), Vsn: []byte{1, 5, 2, 2, 5, 4}}
	long := node
	long.Name = strings.Repeat("x", maxMessage)
	for name, tc := range map[string]struct {
		sent            []byte
		encrypted, rest bool // rest: some of it is not read
		want            error
	}{
		"PushPull":        {sent: encode(t, pushPullMessage, header{Nodes: 2, Join: true}, node, node)},
		"Empty":           {sent: encode(t, pushPullMessage, header{})},
		"Ping":            {sent: encode(t, pingMessage, map[string]any{"SeqNo": uint32(1) << 31, "Node": "a"})},
		"Ack":             {sent: encode(t, ackMessage, map[string]any{"SeqNo": 7, "Payload": nil})},
		"Error":           {sent: encode(t, errorMessage, map[string]any{"Error": strings.Repeat("e", 300)})},
		"ErrManyNodes":    {sent: encode(t, pushPullMessage, header{Nodes: 1 << 20}), want: eboot.ErrTooLarge},
		"ErrManyUnsigned": {sent: encode(t, pushPullMessage, map[string]uint64{"Nodes": 1 << 20}), want: eboot.ErrTooLarge},
		"ErrNegative":     {sent: encode(t, pushPullMessage, map[string]int64{"Nodes": -1 << 40}), want: eboot.ErrTooLarge},
		"ErrNodesTwice":   {sent: slices.Concat([]byte{pushPullMessage, 0x82}, nodes(1), nodes(0xffff)), want: eboot.ErrTooLarge},
		"ErrUserState":    {sent: encode(t, pushPullMessage, header{UserStateLen: 20 << 20}), want: eboot.ErrTooLarge},
		"ErrLong":         {sent: encode(t, pushPullMessage, header{Nodes: 1}, long), want: eboot.ErrTooLarge},
		"ErrFewerNodes":   {sent: encode(t, pushPullMessage, header{Nodes: 2}, node), want: io.ErrUnexpectedEOF},
		"ErrCompressed":   {sent: bomb(t, 1000), want: eboot.ErrInvalid},
		"ErrUser":         {sent: encode(t, 8, map[string]int{"UserMsgLen": 20 << 20}), want: eboot.ErrInvalid},
		"ErrTwoLabels":    {sent: labelled(encode(t, pingMessage, header{})), want: eboot.ErrInvalid},
		"ErrArray":        {sent: encode(t, pushPullMessage, []int{1 << 20, 0, 0}), want: eboot.ErrInvalid},
		"ErrNested":       {sent: encode(t, pingMessage, map[string]any{"Node": []int{1}}), want: eboot.ErrInvalid},
		"ErrNameless":     {sent: encode(t, pingMessage, map[string]any{"": 1}), want: eboot.ErrInvalid},
		"ErrNameOfTwo":    {sent: encode(t, pushPullMessage, map[string]any{"Join\xff\x00\x02\xabNodes": 1 << 20}), want: eboot.ErrInvalid},
		"Encrypted":       {sent: slices.Concat([]byte{encryptedMessage, 0, 0, 0, 3}, []byte("abc")), encrypted: true},
		"ErrEncryptedLong": {
			sent: binary.BigEndian.AppendUint32([]byte{encryptedMessage}, maxMessage), encrypted: true, want: eboot.ErrTooLarge,
		},
		"TypeOfEncrypted": {sent: []byte{encryptedMessage, 0, 0, 0, 3, 'a', 'b', 'c'}, rest: true},
		"TypeOfPlain":     {sent: bomb(t, 1000), encrypted: true, rest: true},
	} {
		t.Run(name, func(t *testing.T) {
			sent := labelled(tc.sent)
			got, err := readMessage(bytes.NewReader(sent), true, tc.encrypted)
			if !errors.Is(err, tc.want) || tc.want == nil && err != nil {
				t.Fatalf("got %v, want %v", err, tc.want)
			}
			if tc.rest {
				sent = labelled(tc.sent[:1])
			}
			if err == nil && !bytes.Equal(got, sent) {
				t.Errorf("%d bytes came as %d", len(sent), len(got))
			}
		})
	}
	if _, err := readMessage(strings.NewReader(""), true, false); err != io.EOF {
		t.Errorf("nothing: %v", err)
	}
	if _, err := readMessage(bytes.NewReader(labelled(nil)), true, false); err != io.ErrUnexpectedEOF {
		t.Errorf("only a label: %v", err)
	}
	if _, err := readMessage(bytes.NewReader(labelled(encode(t, pingMessage, header{}))), false, false); !errors.Is(err, eboot.ErrInvalid) {
		t.Errorf("an answer with a label: %v", err)
	}
}

// nodes is the field of a header.
func nodes(n uint16) []byte {
	return binary.BigEndian.AppendUint16(append([]byte{0xa5}, "Nodes\xcd"...), n)
}

// What is let through announces no more than it may, as memberlist's decoder has it.
func FuzzMessage(f *testing.F) {
	for _, m := range slices.Concat(recorded(f, "stream"), recorded(f, "answer"), recorded(f, "packet")) {
		f.Add(m)
	}
	f.Add(encode(f, pushPullMessage, header{Nodes: 1}, pushNode{Name: "a", Addr: []byte{10, 0, 0, 1}}))
	f.Add(encode(f, pushPullMessage, header{Nodes: 1 << 20}))
	f.Add(encode(f, pushPullMessage, map[string]any{"Join\xff\x00\x02\xabNodes": 1 << 20}))
	f.Add(slices.Concat([]byte{pushPullMessage, 0xde, 0, 2}, nodes(1), nodes(0xffff)))
	f.Add(encode(f, pingMessage, map[string]any{"SeqNo": 1, "Node": "a"}))
	f.Add(labelled([]byte{encryptedMessage, 0, 0, 0, 1, 2}))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, labelled := range []bool{false, true} {
			for _, encrypted := range []bool{false, true} {
				got, err := readMessage(bytes.NewReader(b), labelled, encrypted)
				if len(got) > maxMessage || err == nil && !bytes.HasPrefix(b, got) {
					t.Fatalf("%d bytes came as %d", len(b), len(got))
				}
			}
		}
		got, err := readMessage(bytes.NewReader(b), false, false)
		if err != nil || got[0] != pushPullMessage {
			return
		}
		var h header
		if codec.NewDecoder(bytes.NewReader(got[1:]), &codec.MsgpackHandle{}).Decode(&h) == nil && (h.Nodes > maxNodes || h.UserStateLen > 0) {
			t.Fatalf("let through: %+v", h)
		}
	})
}

// A packet that is let through holds nothing that makes memberlist set aside more than came: no part
// of it, as memberlist takes it apart, is compressed or of a type that no server sends.
func FuzzPacket(f *testing.F) {
	for _, m := range recorded(f, "packet") {
		f.Add(m)
	}
	for _, m := range packetBombs(bomb(f, 1000)) {
		f.Add(m)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if err := checkPacket(b); err != nil {
			if !errors.Is(err, eboot.ErrInvalid) {
				t.Fatalf("error of another kind: %v", err)
			}
			return
		}
		b, _, err := memberlist.RemoveLabelHeaderFromPacket(b)
		if err != nil {
			t.Fatal(err)
		}
		if b[0] == checksumMessage && len(b) >= 5 {
			b = b[5:]
		}
		parts := [][]byte{b}
		if b[0] == compoundMessage { // memberlist, util.go, decodeCompoundMessage
			parts = nil
			lengths, rest := b[2:2+2*int(b[1])], b[2+2*int(b[1]):]
			for ; len(lengths) > 0; lengths = lengths[2:] {
				n := int(binary.BigEndian.Uint16(lengths))
				if n > len(rest) {
					break
				}
				parts, rest = append(parts, rest[:n]), rest[n:]
			}
		}
		for _, part := range parts {
			if len(part) == 0 || part[0] > nackMessage || part[0] == 9 || part[0] == 8 || part[0] == encryptedMessage || part[0] == pushPullMessage || part[0] == compoundMessage {
				t.Fatalf("let through: % x", part)
			}
		}
	})
}

// packetBombs are packets that hold a compressed message.
func packetBombs(packed []byte) map[string][]byte {
	compound := append([]byte{compoundMessage, 2, 0, 2}, byte(len(packed)>>8), byte(len(packed)), pingMessage, 0x80)
	compound = append(compound, packed...)
	sum := binary.BigEndian.AppendUint32([]byte{checksumMessage}, crc32.ChecksumIEEE(packed))
	return map[string][]byte{
		"Plain":    labelled(packed),
		"Checksum": labelled(append(sum, packed...)),
		"Compound": labelled(compound),
		"Nested":   labelled(append([]byte{compoundMessage, 1, byte(len(compound) >> 8), byte(len(compound))}, compound...)),
	}
}

func TestCheckPacket(t *testing.T) {
	for name, b := range packetBombs(bomb(t, 1000)) {
		if err := checkPacket(b); !errors.Is(err, eboot.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, tc := range map[string]struct {
		sent []byte
		want error
	}{
		"Ping":         {labelled([]byte{pingMessage, 0x80}), nil},
		"NoLabel":      {[]byte{aliveMessage, 0x80}, nil},
		"Compound":     {labelled([]byte{compoundMessage, 2, 0, 2, 0, 1, pingMessage, 0x80, nackMessage}), nil},
		"CompoundCut":  {labelled([]byte{compoundMessage, 2, 0, 1, 0, 9, pingMessage, 9}), nil},
		"ErrCutEarly":  {labelled([]byte{compoundMessage, 2, 0, 1}), eboot.ErrInvalid},
		"ErrEmpty":     {labelled(nil), eboot.ErrInvalid},
		"ErrEmptyPart": {labelled([]byte{compoundMessage, 1, 0, 0}), eboot.ErrInvalid},
		"ErrLabel":     {[]byte{labelMessage, 9, 'x'}, eboot.ErrInvalid},
		"ErrUser":      {labelled([]byte{8}), eboot.ErrInvalid},
	} {
		if err := checkPacket(tc.sent); !errors.Is(err, tc.want) {
			t.Errorf("%s: got %v, want %v", name, err, tc.want)
		}
	}
}

// Strangers without a key have little memory set aside, and servers meet meanwhile.
func TestStrangersCannotFillMemory(t *testing.T) {
	a := start(t, "a", "127.0.0.1:0")
	packed := bomb(t, 40<<20)
	if len(packed) > 60_000 {
		t.Fatalf("%d bytes do not fit into a packet", len(packed))
	}
	packets := packetBombs(packed)
	streams := map[string][]byte{
		"Compressed": labelled(packed),
		"ManyNodes":  labelled(encode(t, pushPullMessage, header{Nodes: 1 << 20})),
		"UserState":  labelled(encode(t, pushPullMessage, header{UserStateLen: 20 << 20})),
		"User":       labelled(encode(t, 8, map[string]int{"UserMsgLen": 20 << 20})),
		"Endless":    labelled(encode(t, pushPullMessage, header{Nodes: 1}, pushNode{Name: strings.Repeat("x", 1<<20)})),
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	from := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 66)}}
	for name, sent := range streams {
		conn, err := from.Dial("tcp", a.Address().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(patience))
		begin := time.Now()
		_, _ = conn.Write(sent) // it may be refused before all was sent
		_, err = io.Copy(io.Discard, conn)
		if d := time.Since(begin); d >= time.Second {
			t.Errorf("%s: open for %v, until %v", name, d, err)
		}
	}
	udp, err := net.Dial("udp", a.Address().String())
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	for _, sent := range packets {
		if _, err := udp.Write(sent); err != nil {
			t.Fatal(err)
		}
	}
	for _, last := range [][]byte{labelled(encode(t, pingMessage, map[string]any{"": 1})), {labelMessage, 1}} {
		if _, err := udp.Write(last); err != nil {
			t.Fatal(err)
		}
	}
	b := start(t, "b", "127.0.0.2:0", seeds(a))
	b.seesAlive(t, "a")
	a.seesAlive(t, "b")
	poll(t, "the packets to be dropped", func() bool {
		return len(a.log.lines("packet dropped", "of type")) > 0 && len(a.log.lines("packet dropped", "a label")) > 0
	})
	runtime.ReadMemStats(&after)
	if n := (after.TotalAlloc - before.TotalAlloc) >> 20; n > 16 {
		t.Errorf("%d MiB were allocated", n)
	} else {
		t.Logf("%d MiB were allocated", n)
	}
}

// The shutdown of a transport that nobody reads from ends.
func TestShutdownUnread(t *testing.T) {
	logger := newLogger(hclog.NewNullLogger())
	inner, err := memberlist.NewNetTransport(&memberlist.NetTransportConfig{BindAddrs: []string{"127.0.0.1"}, Logger: logger})
	if err != nil {
		t.Fatal(err)
	}
	tr := newTransport(inner, nil, logger)
	udp, err := net.Dial("udp", net.JoinHostPort("127.0.0.1", strconv.Itoa(inner.GetAutoBindPort())))
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	for range 10 {
		if _, err := udp.Write([]byte{pingMessage, 0x80}); err != nil {
			t.Fatal(err)
		}
	}
	stacks := make([]byte, 1<<20)
	poll(t, "the listener to wait for a reader", func() bool {
		for stack := range strings.SplitSeq(string(stacks[:runtime.Stack(stacks, true)]), "\n\n") {
			if strings.Contains(stack, "[chan send") && strings.Contains(stack, "udpListen") {
				return true
			}
		}
		return false
	})
	done := make(chan error, 1)
	go func() { done <- tr.Shutdown() }()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(patience):
		t.Fatal("it did not end")
	}
}
