package eboot_test

import (
	"encoding/json"
	"errors"
	"testing"

	"eboot"
)

func TestParsePrefix(t *testing.T) {
	for text, want := range map[string]string{
		"10.1.2.3": "10.1.2.3/32", "10.0.0.0/8": "10.0.0.0/8", "0.0.0.0/0": "0.0.0.0/0",
		"::ffff:10.1.2.3": "10.1.2.3/32", // an IPv4 address, as sockets write it
	} {
		if p, err := eboot.ParsePrefix(text); err != nil || p.String() != want {
			t.Errorf("ParsePrefix(%q) = %v, %v", text, p, err)
		}
	}
	for _, text := range []string{"", "10", "10.0.0.1/8", "10.0.0.0/33", "fe80::1", "fe80::/10", "10.0.0.0/", "host"} {
		if p, err := eboot.ParsePrefix(text); !errors.Is(err, eboot.ErrInvalid) {
			t.Errorf("ParsePrefix(%q) = %v, %v", text, p, err)
		}
	}
}

func TestRef(t *testing.T) {
	r, err := eboot.ParseRef("app-x@1.2.3+build~1")
	if err != nil || r.Name != "app-x" || r.Version != "1.2.3+build~1" {
		t.Fatalf("ParseRef = %+v, %v", r, err)
	}
	for _, text := range []string{"", "app", "app@", "@1", "a b@1", "app@1/2", "../x@1", "app@1@2", "-a@1"} {
		if _, err := eboot.ParseRef(text); !errors.Is(err, eboot.ErrInvalid) {
			t.Errorf("ParseRef(%q) error = %v", text, err)
		}
	}
}

func TestJSONOfNames(t *testing.T) {
	type both struct {
		D eboot.Digest
		R eboot.Ref
	}
	for _, v := range []both{{}, {eboot.DigestOf([]byte("x")), eboot.Ref{Name: "a", Version: "1"}}} {
		data, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		var back both
		if err := json.Unmarshal(data, &back); err != nil || back != v {
			t.Errorf("%s came back as %v, %v", data, back, err)
		}
	}
	var back both
	if err := json.Unmarshal([]byte(`{"D":"xyz"}`), &back); !errors.Is(err, eboot.ErrInvalid) {
		t.Errorf("bad digest: %v", err)
	}
}

func TestCheckLabels(t *testing.T) {
	if err := eboot.CheckLabels(map[string]string{"rack": "7 left"}); err != nil {
		t.Error(err)
	}
	for _, labels := range []map[string]string{{"": "x"}, {"a b": "x"}, {"a": "x\ny"}} {
		if err := eboot.CheckLabels(labels); !errors.Is(err, eboot.ErrInvalid) {
			t.Errorf("CheckLabels(%q) = %v", labels, err)
		}
	}
}

func TestBundleCheck(t *testing.T) {
	d := eboot.DigestOf(nil)
	good := eboot.Bundle{Name: "a", Version: "1", ERTS: "13.1.5", Manifest: d, Times: d, BootScript: "bin/start.boot"}
	if err := good.Check(); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(*eboot.Bundle){
		"Name":       func(b *eboot.Bundle) { b.Name = "" },
		"ERTS":       func(b *eboot.Bundle) { b.ERTS = "x" },
		"Manifest":   func(b *eboot.Bundle) { b.Manifest = eboot.Digest{} },
		"BootScript": func(b *eboot.Bundle) { b.BootScript = "../start.boot" },
		"SysConfig":  func(b *eboot.Bundle) { b.SysConfig = "/etc/passwd" },
	} {
		bad := good
		spoil(&bad)
		if err := bad.Check(); !errors.Is(err, eboot.ErrInvalid) {
			t.Errorf("bad %s: %v", name, err)
		}
	}
}
