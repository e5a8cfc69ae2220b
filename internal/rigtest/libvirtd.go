package rigtest

import (
	"crypto/rand"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tardigrade-recovery/tardigrade/internal/loopback"
)

// Libvirtd is a libvirt daemon that the test started, with a mount and a process
// namespace of its own, so that several of them share this machine.
type Libvirtd struct {
	// Socket is its socket on this machine. Other daemons reach it on 127.0.0.1 at the
	// ports TCP and TLS. PKI is a directory with its certificate.
	Socket, TCP, TLS, PKI string

	cmd *exec.Cmd
}

// Accounts are /etc/passwd and /etc/group of this machine with the user that
// libvirt's QEMU driver looks for.
func Accounts() (passwd, group string, err error) {
	p, err := os.ReadFile("/etc/passwd")
	if err != nil {
		return "", "", err
	}
	g, err := os.ReadFile("/etc/group")
	if err != nil {
		return "", "", err
	}
	passwd, group = string(p), string(g)
	if !strings.Contains(passwd, "libvirt-qemu:") {
		passwd += "libvirt-qemu:x:64055:64055::/nonexistent:/usr/sbin/nologin\n"
	}
	if !strings.Contains(group, "libvirt-qemu:") {
		group += "libvirt-qemu:x:64055:\n"
	}
	return passwd, group, nil
}

// QEMUConf is libvirt's qemu.conf for a host of tests. pki is where QEMU finds the files
// of [Authority.Libvirt], if there are any.
func QEMUConf(pki string) string {
	return fmt.Sprintf("default_tls_x509_cert_dir = %q\nmigrate_tls_x509_verify = 1\n", pki) + qemuConf
}

const qemuConf = `user = "root"
group = "root"
security_driver = "none"
stdio_handler = "file"
cgroup_controllers = []
namespaces = []
remember_owner = 0
migration_port_min = 19000
migration_port_max = 19063
`

// LibvirtdConf is libvirtd.conf for a host of tests, whose sockets are made in dir. It
// trusts whoever connects by TLS with a certificate, and by TCP, where tcp has a port.
// pki is where the files of [Authority.Libvirt] are.
func LibvirtdConf(dir, pki, address, tls, tcp string) string {
	listen := 0
	if tcp != "" {
		listen = 1
	}
	return fmt.Sprintf(`listen_addr = %[3]q
listen_tls = 1
tls_port = %[4]q
listen_tcp = %[6]d
tcp_port = %[5]q
ca_file = "%[2]s/cacert.pem"
cert_file = "%[2]s/servercert.pem"
key_file = "%[2]s/serverkey.pem"
auth_tls = "none"
auth_tcp = "none"
auth_unix_rw = "none"
unix_sock_dir = %[1]q
host_uuid = %[7]q
keepalive_interval = 1
keepalive_count = 3
log_level = 3
`, dir, pki, address, tls, tcp, listen, UUID())
}

// UUID is a random one.
func UUID() string {
	var b [16]byte
	rand.Read(b[:])
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// StartLibvirtd starts a daemon on a host of that name, with a certificate of the
// authority. It ends with the test, and its guests with it. It needs root.
func StartLibvirtd(t *testing.T, name string, authority *Authority) *Libvirtd {
	t.Helper()
	dir, err := os.MkdirTemp("", "lv")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	v := &Libvirtd{Socket: filepath.Join(dir, "libvirt-sock"), PKI: filepath.Join(dir, "pki")}
	for _, port := range []*string{&v.TCP, &v.TLS} {
		r, err := loopback.Reserve()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(r.Release)
		*port = r.Port
	}
	passwd, group, err := Accounts()
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{"passwd": passwd, "group": group, "libvirtd.conf": LibvirtdConf(dir, v.PKI, "127.0.0.1", v.TLS, v.TCP), "etc/qemu.conf": QEMUConf(v.PKI)}
	for name, text := range authority.Libvirt("127.0.0.1") {
		files["pki/"+name] = text
	}
	for file, text := range files {
		path := filepath.Join(dir, file)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	const script = `set -e
hostname "$1"
mkdir -p /etc/libvirt /var/lib/libvirt /var/cache/libvirt /var/log/libvirt /run/libvirt
mount --bind "$2/etc" /etc/libvirt
for d in /var/lib/libvirt /var/cache/libvirt /var/log/libvirt /run/libvirt; do mount -t tmpfs tmpfs $d; done
mount --bind "$2/passwd" /etc/passwd
mount --bind "$2/group" /etc/group
# The first process of a namespace has to take in those that lost their parents.
libvirtd --listen -f "$2/libvirtd.conf" -p "$2/pid" &
wait $!
`
	v.cmd = exec.Command("unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", script, "sh", name, dir)
	out, err := os.Create(filepath.Join(dir, "output"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	v.cmd.Stdout, v.cmd.Stderr = out, out
	v.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := v.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(v.Kill)
	end := time.Now().Add(time.Minute)
	for {
		if c, err := net.Dial("unix", v.Socket); err == nil {
			c.Close()
			return v
		}
		if time.Now().After(end) {
			said, _ := os.ReadFile(out.Name())
			t.Fatalf("libvirtd of %s does not listen within a minute: is it installed, and is this root? It says:\n%s", name, said)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// Kill ends the daemon and its guests at once, as if their host had lost its power.
func (v *Libvirtd) Kill() {
	// Its child is the first process of a namespace: all others end with it.
	v.cmd.Process.Kill()
	v.cmd.Wait()
}

// Domain is the definition of a [BootSector] guest for libvirt: the image must be on
// a path that all hosts have, and its serial port is connected to a socket at serial.
func Domain(name string, mib int, image, serial string) string {
	return fmt.Sprintf(`<domain type='qemu'>
<name>%s</name><uuid>%s</uuid><memory unit='MiB'>%d</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='pc-i440fx-7.2'>hvm</type></os>
<devices>
<emulator>/usr/bin/qemu-system-x86_64</emulator>
<disk type='file' device='floppy'><driver name='qemu' type='raw'/><source file='%s'/><target dev='fda' bus='fdc'/><readonly/></disk>
<controller type='usb' model='none'/><memballoon model='none'/>
<serial type='unix'><source mode='connect' path='%s'/></serial>
</devices></domain>`, name, UUID(), mib, image, serial)
}
