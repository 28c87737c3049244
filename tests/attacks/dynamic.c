/* A listed program that is linked dynamically. */
int main(void)
{
	return 0;
}
