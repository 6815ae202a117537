# A guest in one boot sector that makes it visible whether a live migration lost or changed anything.
#
# It fills its region [start, end) by xorshift32, prints "ready" and then, for pass n = 1, 2, 3, … for ever:
# writes n into the first word of every page of [hot, end), prints n and a line feed on COM1, and sleeps until
# the timer has ticked `ticks` times. So what is printed and what is in memory depend on each other, and a guest
# whose timer or interrupt controller did not survive the move stops counting.
#
#   as --32 guest.S -o guest.o && ld -m elf_i386 -Ttext 0x7c00 --oformat binary -o guest.bin guest.o
#
# gateway/demo/guest.py patches the five little-endian words at offset 0x40 and pads to a floppy image.
.code16
.globl _start
_start:
    cli
    cld
    xor %ax,%ax
    mov %ax,%ds
    mov %ax,%ss
    mov $0x7c00,%sp
    in $0x92,%al                  # fast A20
    or $2,%al
    out %al,$0x92
    lgdt gdtr
    lidt idtr
    mov %cr0,%eax
    or $1,%al
    mov %eax,%cr0
    ljmp $8,$protected
.org 0x40
start:  .long 0x100000            # region, bytes; whole pages
end:    .long 0x200000
hot:    .long 0x180000            # from here on pages are written in each pass
seed:   .long 0x12345678          # not 0: xorshift would stay there
ticks:  .long 1                   # timer ticks (10 ms) of sleep in each pass
.code32
protected:
    mov $16,%ax
    mov %ax,%ds
    mov %ax,%es
    mov %ax,%ss
    mov $0x7000,%esp
    # interrupt gate 8 at physical 8 * 8 (the BIOS leaves IRQ 0 there), everything else masked
    movl $0x00080000 + tick_offset,0x40
    movl $0x00008e00,0x44
    mov $0xfe,%al
    out %al,$0x21
    mov $0xff,%al
    out %al,$0xa1
    mov $0x34,%al                 # timer channel 0, rate generator, 1193182 / 11932 = 100 Hz
    out %al,$0x43
    mov $0x9c,%al
    out %al,$0x40
    mov $0x2e,%al
    out %al,$0x40
    mov $0x3f9,%dx                # COM1: no interrupts, 8n1
    xor %al,%al
    out %al,%dx
    mov $0x3fb,%dx
    mov $3,%al
    out %al,%dx
    mov start,%edi
    mov end,%ecx
    mov seed,%eax
fill:
    mov %eax,%ebx
    shl $13,%ebx
    xor %ebx,%eax
    mov %eax,%ebx
    shr $17,%ebx
    xor %ebx,%eax
    mov %eax,%ebx
    shl $5,%ebx
    xor %ebx,%eax
    stosl
    cmp %ecx,%edi
    jb fill
    mov $ready,%esi
hello:
    lodsb
    test %al,%al
    jz count
    call put
    jmp hello
count:
    xor %ebp,%ebp
    sti
pass:
    inc %ebp
    mov hot,%edi
dirty:
    mov %ebp,(%edi)
    add $4096,%edi
    cmp end,%edi
    jb dirty
    mov %ebp,%eax                 # print in decimal
    mov $10,%ebx
    xor %ecx,%ecx
divide:
    xor %edx,%edx
    div %ebx
    push %edx
    inc %ecx
    test %eax,%eax
    jnz divide
digit:
    pop %eax
    add $'0',%al
    call put
    loop digit
    mov $10,%al
    call put
    mov ticks,%ecx
    jecxz pass
sleep:
    hlt
    loop sleep
    jmp pass
put:
    push %eax
    mov $0x3fd,%dx
wait:
    in %dx,%al
    test $0x20,%al
    jz wait
    pop %eax
    mov $0x3f8,%dx
    out %al,%dx
    ret
tick:
    push %eax
    mov $0x20,%al
    out %al,$0x20
    pop %eax
    iret
ready: .asciz "ready\n"
.equ tick_offset, 0x7c00 + tick - _start
.align 8
gdt: .quad 0
    .quad 0x00cf9a000000ffff
    .quad 0x00cf92000000ffff
gdtr: .word 23
    .long gdt
idtr: .word 71
    .long 0
.org 510
.word 0xaa55
